"""The rules that decide what a rollout does next."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flywheel_monitor.windows.support import covered
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.comparison import Comparison, Variant
from flywheel_registry.rollouts.decision import Decision, decide
from flywheel_registry.rollouts.guardrails import wilson_lower
from flywheel_registry.rollouts.state_machine import Progress, RolloutState

START = datetime(2013, 9, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
POLICY = RolloutPolicy(
    shadow_min_labelled=200,
    shadow_max_log_loss_delta=0.01,
    min_bake_seconds=86_400,
    canary_min_predictions=100,
    canary_max_log_loss_delta=0.02,
)
SHADOW, CANARY = Progress(), Progress(RolloutState.CANARY, 5.0, 1)
AT_100_PERCENT = Progress(RolloutState.CANARY, 100.0, 3)


def evidence(
    lower: float = -0.02,
    upper: float = 0.0,
    labelled: int = 500,
    days: float = 2,
    predictions: int = 1000,
    **challenger: float,
) -> Comparison:
    return Comparison(
        champion=Variant(predictions=10_000, labelled=labelled, score_stddev=0.1),
        challenger=replace(
            Variant(predictions=predictions, labelled=labelled, score_stddev=0.1), **challenger
        ),
        covered_from=START,
        covered_until=START + timedelta(days=days),
        labelled=labelled,
        log_loss_delta=(lower + upper) / 2,
        log_loss_delta_upper=upper,
        log_loss_delta_lower=lower,
    )


@pytest.mark.parametrize(
    ("progress", "seen", "decision", "words"),
    [
        (SHADOW, None, Decision.HOLD, "provides no evidence"),
        (SHADOW, Comparison(), Decision.HOLD, "0 of 200 rows labelled"),
        (SHADOW, evidence(labelled=199), Decision.HOLD, "199 of 200"),
        (SHADOW, evidence(days=0.5), Decision.HOLD, "12:00:00 of 1 day, 0:00:00"),
        (SHADOW, evidence(upper=0.01), Decision.ADVANCE, "+0.01000"),
        (SHADOW, evidence(lower=0.005, upper=0.02), Decision.HOLD, "Undecided"),
        (SHADOW, evidence(lower=0.011, upper=0.02), Decision.REFUSE, "Worse in shadow"),
        (CANARY, evidence(predictions=99), Decision.HOLD, "99 of 100 challenger answers"),
        (CANARY, evidence(days=0.5), Decision.HOLD, "of event time"),
        (CANARY, evidence(upper=0.02), Decision.ADVANCE, "Not inferior"),
        (CANARY, evidence(lower=-0.1, upper=0.3), Decision.ADVANCE, "not refuted"),
        (CANARY, evidence(labelled=0), Decision.ADVANCE, "too few for a log-loss bound"),
        # A canary that is proven worse is rolled back at once, before its bake time is over.
        (
            CANARY,
            evidence(lower=0.021, upper=0.05, days=0.1, predictions=40),
            Decision.ROLL_BACK,
            "Worse at 5 %",
        ),
        # With 29 labels the normal approximation of a bound is not valid.
        (
            CANARY,
            evidence(lower=0.9, upper=1.0, labelled=29),
            Decision.ADVANCE,
            "29 labelled rows are too few",
        ),
        # At 100 % the champion has no concurrent traffic, so its bounds do not count.
        (
            AT_100_PERCENT,
            evidence(lower=0.9, upper=1.0),
            Decision.ADVANCE,
            "no champion traffic to compare with",
        ),
        (AT_100_PERCENT, evidence(lower=0.9, upper=1.0, predictions=99), Decision.HOLD, "99 of 100"),
        (
            Progress(RolloutState.PAUSED, 5, 2, RolloutState.CANARY),
            evidence(lower=1, upper=2),
            Decision.HOLD,
            "nothing to decide",
        ),
    ],
)
def test_decisions_follow_the_evidence_and_state_its_numbers(
    progress: Progress, seen: Comparison | None, decision: Decision, words: str
) -> None:
    verdict = decide(seen, POLICY, progress)
    assert verdict.decision is decision
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("field", "limit", "good", "bad"),
    [
        ("max_error_rate", 0.05, evidence(error_rate=0.055), evidence(error_rate=0.1)),
        ("max_p99_ms", 20.0, evidence(latency_p99_ms=20.0), evidence(latency_p99_ms=20.1)),
        # Standard error of the difference: sqrt(1/10000 + 1/1000) = 0.0332; times 1.645: 0.0546.
        (
            "max_score_shift",
            0.5,
            replace(evidence(), score_shift=0.55),
            replace(evidence(), score_shift=0.56),
        ),
    ],
)
def test_guardrails_end_a_rollout_in_shadow_and_in_canary(
    field: str, limit: float, good: Comparison, bad: Comparison
) -> None:
    policy = replace(POLICY, **{field: limit})
    assert decide(good, policy, SHADOW).decision is Decision.ADVANCE
    assert decide(bad, policy, SHADOW).decision is Decision.REFUSE
    assert decide(good, policy, CANARY).decision is Decision.ADVANCE
    verdict = decide(bad, policy, CANARY)
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.by_guardrail
    at_100_percent = decide(bad, policy, AT_100_PERCENT).decision
    assert at_100_percent is (Decision.ADVANCE if field == "max_score_shift" else Decision.ROLL_BACK)


def test_two_errors_in_ten_are_no_breach_but_half_of_fifty_are() -> None:
    policy = replace(POLICY, max_error_rate=0.1)
    assert decide(evidence(predictions=10, error_rate=0.2), policy, CANARY).decision is Decision.HOLD
    assert decide(evidence(predictions=50, error_rate=0.5), policy, CANARY).decision is Decision.ROLL_BACK


def test_wilson_bound_agrees_with_a_published_value() -> None:
    # Newcombe 1998, table I: 81 of 263, 95 % two-sided score interval 0.2553 to 0.3662.
    assert wilson_lower(81 / 263, 263, 1.959964) == pytest.approx(0.2553, abs=5e-5)
    assert wilson_lower(0.3, 0, 1.96) == 0


@pytest.mark.parametrize(("progress", "decision"), [(SHADOW, Decision.REFUSE), (CANARY, Decision.ROLL_BACK)])
def test_a_step_without_enough_evidence_ends_after_max_step(progress: Progress, decision: Decision) -> None:
    policy = replace(POLICY, max_step_seconds=5 * 86_400)
    poor = evidence(labelled=3, predictions=5, days=5)
    assert decide(poor, policy, progress).decision is Decision.HOLD
    late = decide(replace(poor, covered_until=START + timedelta(days=5, seconds=1)), policy, progress)
    assert late.decision is decision
    assert "max_step of 5 days" in late.reason


@given(
    st.floats(-1, 1),
    st.floats(0, 1),
    st.integers(0, 3000),
    st.integers(0, 3000),
    st.floats(0, 30),
    st.floats(0, 1),
    st.sampled_from([SHADOW, CANARY, AT_100_PERCENT]),
)
def test_decisions_keep_the_rules_for_any_evidence(
    delta: float, half: float, labelled: int, predictions: int, days: float, errors: float, progress: Progress
) -> None:
    policy = replace(POLICY, max_error_rate=0.3)
    seen = evidence(delta - half, delta + half, labelled, days, predictions, error_rate=errors)
    verdict = decide(seen, policy, progress)
    assert verdict.reason
    if verdict.decision is Decision.ADVANCE:
        assert seen.bake_seconds >= policy.min_bake_seconds
        # One-sided 95 %: z = 1.645, and a share's standard deviation is at most 0.5.
        assert predictions == 0 or errors <= 0.3 + 2 / predictions**0.5
        if progress.state is RolloutState.SHADOW:
            assert labelled >= 200
            assert delta + half <= 0.01
        else:
            assert predictions >= 100
            assert labelled < 30 or delta - half <= 0.02 or progress == AT_100_PERCENT
    if verdict.decision is Decision.REFUSE:
        assert progress.state is RolloutState.SHADOW
    if verdict.decision is Decision.ROLL_BACK:
        assert progress.state is RolloutState.CANARY


@given(
    st.integers(50, 400),
    st.floats(0.1, 3.0).filter(lambda days: abs(days - 1) > 0.1),
    st.integers(-(2**50), 2**50),
    st.sampled_from([SHADOW, CANARY, AT_100_PERCENT]),
)
@example(100, 0.5, 2**50, SHADOW)
@example(100, 0.5, -(2**50), CANARY)
def test_one_wrong_time_changes_no_decision(n: int, days: float, wrong: int, progress: Progress) -> None:
    """n predictions over some days, and one more with any time, compared with those without it."""

    def decided(times: list[int]) -> Decision:
        start, end = covered(np.array(times, np.int64)) or (0, 0)
        baked = evidence(days=(end - start) / DAY_US, predictions=len(times) + 1000)
        return decide(baked, POLICY, progress).decision

    times = np.linspace(0, days * DAY_US, n).astype(int).tolist()
    assert decided(times) == decided([*times, wrong])
    assert (Decision.ADVANCE if days > 1 else Decision.HOLD) == decided(times)
