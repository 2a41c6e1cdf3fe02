"""The rules that decide what a rollout does next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flywheel_monitor.windows.support import covered
from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.policies.rollout_policy import RolloutPolicy, StepOverride
from flywheel_registry.rollouts.decision import decide
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.rollouts.step_verdict import StepMetric, step_limits
from flywheel_registry.rollouts.verdict import Decision, Verdict
from tests.support.builders.step_evidence import NOTHING, Counted

DAY, DAY_US = 86_400.0, 86_400_000_000
POLICY = RolloutPolicy(
    shadow_min_labelled=200,
    shadow_max_log_loss_delta=0.01,
    min_bake_seconds=DAY,
    canary_min_predictions=100,
    canary_max_log_loss_delta=0.02,
)
SHADOW, CANARY = Progress(RolloutState.SHADOW, 0.0, 1), Progress(RolloutState.CANARY, 5.0, 2)
AT_100_PERCENT = Progress(RolloutState.CANARY, 100.0, 4)


def evidence(delta: float = -0.01, error: float = 0.001, labelled: int = 500, **changes: Any) -> Counted:
    """Return what the monitor counted: `error` is the standard error of `delta`."""
    return Counted(delta, error, labelled, **changes)


def judged(
    seen: Counted | None, policy: RolloutPolicy, progress: Progress, wall: float = 10 * DAY
) -> Verdict:
    """Return the decision by the monitor's verdicts on the counts."""
    return decide(None if seen is None else seen.comparison(policy, progress), policy, progress, wall)


# Half-widths in standard errors after 500 rows, from Howard et al. 2021, equation 14: with rho = 200 / 8,
# sqrt(2 * 525 / 500 * log(sqrt(21) / (2 * level) + 1)) is 2.842 at level 0.05 (passing) and 3.310 at 0.0125
# (a breach: four steps share 0.05); with rho = 100 / 8 they are 2.926 and 3.373.
@pytest.mark.parametrize(
    ("progress", "seen", "decision", "words"),
    [
        (SHADOW, None, Decision.HOLD, "provides no evidence"),
        (SHADOW, NOTHING, Decision.HOLD, "0 of 200 rows labelled"),
        (SHADOW, evidence(labelled=199), Decision.HOLD, "199 of 200"),
        (SHADOW, evidence(labelled=29), Decision.HOLD, "enough labelled rows for a log-loss bound"),
        (SHADOW, evidence(days=0.5), Decision.HOLD, "12:00:00 of 1 day, 0:00:00 of event time"),
        (SHADOW, evidence(0.00715), Decision.ADVANCE, "+0.00715"),
        (SHADOW, evidence(0.00717), Decision.HOLD, "Undecided"),
        (SHADOW, evidence(0.01330), Decision.HOLD, "Undecided"),
        (SHADOW, evidence(0.01332), Decision.REFUSE, "Worse in shadow"),
        (CANARY, evidence(predictions=99), Decision.HOLD, "99 of 100 challenger answers"),
        (CANARY, evidence(days=0.5), Decision.HOLD, "of event time"),
        (CANARY, evidence(0.01706), Decision.ADVANCE, "Not inferior"),
        (CANARY, evidence(0.01708), Decision.ADVANCE, "not refuted"),
        (CANARY, evidence(0.1, 0.1), Decision.ADVANCE, "not refuted"),
        (CANARY, evidence(labelled=0), Decision.ADVANCE, "too few for a log-loss bound"),
        (CANARY, evidence(0.02336), Decision.ADVANCE, "not refuted"),
        # A canary that is proven worse is rolled back at once, before its bake time is over.
        (CANARY, evidence(0.02338, days=0.1, predictions=40), Decision.ROLL_BACK, "Worse at 5 %"),
        # With 29 labels the normal approximation of a bound is not valid.
        (CANARY, evidence(0.9, labelled=29), Decision.ADVANCE, "29 labelled rows are too few"),
        # At 100 % the champion has no concurrent traffic, so its bounds do not count.
        (AT_100_PERCENT, evidence(0.9), Decision.ADVANCE, "no champion traffic to compare with"),
        (AT_100_PERCENT, evidence(0.9, predictions=99), Decision.HOLD, "99 of 100"),
        (
            Progress(RolloutState.PAUSED, 5, 2, RolloutState.CANARY),
            evidence(1.0),
            Decision.HOLD,
            "nothing to decide",
        ),
    ],
)
def test_decisions_follow_the_evidence_and_state_its_numbers(
    progress: Progress, seen: Counted | None, decision: Decision, words: str
) -> None:
    verdict = judged(seen, POLICY, progress)
    assert verdict.decision is decision
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("progress", "seen"), [(SHADOW, evidence(0.05)), (CANARY, evidence(0.05)), (SHADOW, evidence(0.02))]
)
def test_only_a_crossed_quality_bound_rejects(progress: Progress, seen: Counted) -> None:
    assert judged(seen, POLICY, progress).rejects
    policy = replace(POLICY, max_error_rate=0.01, max_p99_ms=5.0, max_score_shift=0.1)
    for bad in (
        replace(seen, error_rate=0.9),
        replace(seen, latency_ms=100.0),
        replace(seen, score_shift=3.0),
    ):
        assert not judged(bad, policy, progress).rejects


@pytest.mark.parametrize("progress", [SHADOW, CANARY, AT_100_PERCENT])
def test_a_bake_needs_wall_time_however_far_event_times_reach(progress: Progress) -> None:
    ahead = evidence(days=3650)
    short = judged(ahead, POLICY, progress, wall=0.95 * DAY)
    assert short.decision is Decision.HOLD
    assert "22:48:00 of 1 day, 0:00:00 of wall time" in short.reason
    assert judged(ahead, POLICY, progress, wall=DAY).decision is Decision.ADVANCE
    replayed = replace(POLICY, min_wall_bake_seconds=60.0)
    assert judged(ahead, replayed, progress, wall=59.0).decision is Decision.HOLD
    assert judged(ahead, replayed, progress, wall=60.0).decision is Decision.ADVANCE


def test_a_step_can_have_rules_of_its_own() -> None:
    own = StepOverride(5.0, min_bake_seconds=3 * DAY, min_samples=2000, max_error_rate=0.5)
    policy = replace(POLICY, max_error_rate=0.01, steps=(own,)).check()
    at_20 = replace(CANARY, challenger_percent=20.0)
    assert judged(evidence(), policy, at_20).decision is Decision.ADVANCE
    assert judged(evidence(days=4), policy, CANARY).decision is Decision.HOLD
    assert judged(evidence(days=2, predictions=3000), policy, CANARY).decision is Decision.HOLD
    assert judged(evidence(days=4, predictions=3000), policy, CANARY).decision is Decision.ADVANCE
    errors = evidence(days=4, predictions=3000, error_rate=0.1)
    assert judged(errors, policy, CANARY).decision is Decision.ADVANCE
    assert judged(errors, policy, at_20).decision is Decision.ROLL_BACK


def test_an_ab_test_waits_for_its_verdict_but_not_past_a_guardrail() -> None:
    policy = replace(POLICY, canary_percents=(50.0,), until_verdict=True, max_error_rate=0.05).check()
    split = Progress(RolloutState.CANARY, 50.0, 1)
    worse = evidence(0.5)
    assert judged(worse, policy, split, wall=20 * DAY).decision is Decision.HOLD
    verdict = judged(evidence(error_rate=0.5), policy, split)
    assert (Decision.ROLL_BACK, False) == (verdict.decision, verdict.rejects)
    assert judged(worse, policy, split, wall=31 * DAY).decision is Decision.EXPIRE


@pytest.mark.parametrize(
    ("verdict", "decision"),
    [
        ("CONTINUE", Decision.HOLD),
        ("SHIP", Decision.ADVANCE),
        ("ROLL_BACK", Decision.ROLL_BACK),
        ("UNSPECIFIED", Decision.HOLD),
    ],
)
def test_the_verdict_of_its_experiment_decides_an_ab_test(verdict: str, decision: Decision) -> None:
    policy = replace(POLICY, canary_percents=(50.0,), until_verdict=True, max_error_rate=0.05).check()
    experiment = ExperimentVerdict("projects/p/models/late/experiments/price", verdict, "buys +3 %")
    seen = replace(evidence(0.5), experiment=experiment)
    found = judged(seen, policy, Progress(RolloutState.CANARY, 50.0, 1))
    assert (decision, False) == (found.decision, found.rejects)
    assert f"{experiment.experiment}: {verdict}: buys +3 %" in found.reason
    broken = replace(seen, error_rate=0.5)
    guarded = judged(broken, policy, Progress(RolloutState.CANARY, 50.0, 1))
    assert guarded.decision is Decision.ROLL_BACK and "error rate" in guarded.reason
    for progress in (SHADOW, CANARY):
        assert judged(seen, POLICY, progress) == judged(replace(seen, experiment=None), POLICY, progress)


@pytest.mark.parametrize(
    ("field", "limit", "good", "bad"),
    [
        ("max_error_rate", 0.05, evidence(error_rate=0.055), evidence(error_rate=0.1)),
        # Not the percentile of the sample breaches, but its lower bound.
        (
            "max_p99_ms",
            20.0,
            evidence(latency_ms=99.0, slow=0.015),
            evidence(latency_ms=99.0, slow=0.1),
        ),
        # Standard error of the difference: sqrt(1/10000 + 1/1000) = 0.03317. After 1000 rows the half-width
        # is 3.364 (rho = 25, shadow) or 3.448 (rho = 12.5, canary) of them: 0.1116 or 0.1144.
        (
            "max_score_shift",
            0.5,
            evidence(score_shift=0.611),
            evidence(score_shift=0.615),
        ),
    ],
)
def test_guardrails_end_a_rollout_in_shadow_and_in_canary(
    field: str, limit: float, good: Counted, bad: Counted
) -> None:
    policy = replace(POLICY, **{field: limit})
    assert judged(good, policy, SHADOW).decision is Decision.ADVANCE
    assert judged(bad, policy, SHADOW).decision is Decision.REFUSE
    assert judged(good, policy, CANARY).decision is Decision.ADVANCE
    verdict = judged(bad, policy, CANARY)
    assert (Decision.ROLL_BACK, False) == (verdict.decision, verdict.rejects)
    at_100_percent = judged(bad, policy, AT_100_PERCENT).decision
    assert at_100_percent is (Decision.ADVANCE if field == "max_score_shift" else Decision.ROLL_BACK)


def test_two_errors_in_ten_are_no_breach_but_half_of_fifty_are() -> None:
    policy = replace(POLICY, max_error_rate=0.1)
    assert judged(evidence(predictions=10, error_rate=0.2), policy, CANARY).decision is Decision.HOLD
    assert judged(evidence(predictions=50, error_rate=0.5), policy, CANARY).decision is Decision.ROLL_BACK


@pytest.mark.parametrize("progress", [SHADOW, CANARY])
def test_a_step_without_enough_evidence_expires_after_max_step(progress: Progress) -> None:
    policy = replace(POLICY, max_step_seconds=5 * DAY)
    for poor in (evidence(labelled=3, predictions=5, days=3650), NOTHING, None):
        assert judged(poor, policy, progress, wall=5 * DAY).decision is Decision.HOLD
        late = judged(poor, policy, progress, wall=5 * DAY + 1)
        assert (Decision.EXPIRE, False) == (late.decision, late.rejects)
        assert "max_step of 5 days" in late.reason


def test_an_undecided_comparison_does_not_hold_for_ever() -> None:
    undecided = evidence(0.01)
    assert judged(undecided, POLICY, SHADOW, wall=30 * DAY).decision is Decision.HOLD
    assert judged(undecided, POLICY, SHADOW, wall=30 * DAY + 1).decision is Decision.EXPIRE


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
    seen = evidence(delta, half / 1.644854, labelled, days=days, predictions=predictions, error_rate=errors)
    verdict = judged(seen, policy, progress)
    assert verdict.reason
    if verdict.decision is Decision.ADVANCE:
        assert days * DAY >= policy.min_bake_seconds
        # One-sided 95 %: z = 1.645, and a share's standard deviation is at most 0.5.
        assert predictions == 0 or errors <= 0.3 + 2 / predictions**0.5
        if progress.state is RolloutState.SHADOW:
            assert labelled >= 200
            assert delta + half <= 0.01
        else:
            assert predictions >= 100
            # Bounds that hold at every look have at most three times the width of one that holds at one look.
            assert labelled < 30 or delta - 3 * half <= 0.02 or progress == AT_100_PERCENT
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
        return judged(baked, POLICY, progress).decision

    times = np.linspace(0, days * DAY_US, n).astype(int).tolist()
    assert decided(times) == decided([*times, wrong])
    assert (Decision.ADVANCE if days > 1 else Decision.HOLD) == decided(times)


GUARDED = replace(POLICY, max_error_rate=0.1, max_p99_ms=20.0, max_score_shift=0.5)


@pytest.mark.parametrize(
    ("policy", "progress", "asked"),
    [
        (POLICY, SHADOW, {"LOSS_DELTA": 0.01}),
        (POLICY, CANARY, {"LOSS_DELTA": 0.02}),
        (POLICY, AT_100_PERCENT, {}),
        (GUARDED, SHADOW, {"LOSS_DELTA": 0.01, "ERROR_RATE": 0.1, "P99_MS": 20.0, "SCORE_SHIFT": 0.5}),
        (GUARDED, AT_100_PERCENT, {"ERROR_RATE": 0.1, "P99_MS": 20.0}),
        (
            replace(GUARDED, canary_percents=(50.0,), until_verdict=True),
            Progress(RolloutState.CANARY, 50.0, 1),
            {"ERROR_RATE": 0.1, "P99_MS": 20.0, "SCORE_SHIFT": 0.5},
        ),
    ],
)
def test_a_step_asks_for_verdicts_on_its_own_limits(
    policy: RolloutPolicy, progress: Progress, asked: dict[str, float]
) -> None:
    limits = step_limits(policy, progress)
    assert asked == limits.limits
    parts = 1 + len(policy.percents)
    assert (0.05, 0.05 / parts) == (limits.pass_level, pytest.approx(limits.breach_level))


@pytest.mark.parametrize("metric", [*StepMetric])
def test_a_limit_without_the_verdict_of_its_step_holds(metric: StepMetric) -> None:
    seen = evidence().comparison(GUARDED, SHADOW)
    assert decide(seen, GUARDED, SHADOW, 10 * DAY).decision is Decision.ADVANCE
    without = {m: v for m, v in seen.verdicts.items() if m is not metric}
    other = {**seen.verdicts, metric: replace(seen.verdicts[metric], limit=0.3)}
    for verdicts in (without, other, {}):
        held = decide(replace(seen, verdicts=verdicts), GUARDED, SHADOW, 10 * DAY)
        assert (Decision.HOLD, True) == (held.decision, "has no verdict on" in held.reason)
