"""The rollout's rules on numbers, and its transitions driven at random."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flywheel_registry import rollout as machine
from flywheel_registry.policy import RolloutPolicy
from flywheel_registry.rollout import (
    Comparison,
    Decision,
    NotPaused,
    Progress,
    RolloutEnded,
    RolloutState,
    Variant,
    tick,
    wilson_lower,
)

START = datetime(2013, 9, 1, tzinfo=UTC)
POLICY = RolloutPolicy(
    shadow_min_labelled=200,
    shadow_max_log_loss_delta=0.01,
    min_bake_seconds=86_400,
    canary_min_predictions=100,
    canary_max_log_loss_delta=0.02,
)
SHADOW, CANARY = Progress(), Progress(RolloutState.CANARY, 5.0, 1)
EVERYBODY = Progress(RolloutState.CANARY, 100.0, 3)


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
        challenger=replace(Variant(predictions=predictions, labelled=labelled, score_stddev=0.1), **challenger),
        first_event=START, last_event=START + timedelta(days=days), labelled=labelled,
        log_loss_delta=(lower + upper) / 2, log_loss_delta_upper=upper, log_loss_delta_lower=lower,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("progress", "seen", "decision", "words"),
    [
        (SHADOW, None, Decision.HOLD, "could not be asked"),
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
        # A proven loss takes a canary back at once, before its bake is over.
        (CANARY, evidence(lower=0.021, upper=0.05, days=0.1, predictions=40), Decision.ROLL_BACK, "Worse at 5 %"),
        # With 29 labels a bound means nothing, whatever it says.
        (CANARY, evidence(lower=0.9, upper=1.0, labelled=29), Decision.ADVANCE, "29 labelled rows are too few"),
        # At 100 % what the champion answered before is of other hours: no comparison, whatever its bounds say.
        (EVERYBODY, evidence(lower=0.9, upper=1.0), Decision.ADVANCE, "answers nobody to compare with"),
        (EVERYBODY, evidence(lower=0.9, upper=1.0, predictions=99), Decision.HOLD, "99 of 100"),
        (Progress(RolloutState.PAUSED, 5, 2, RolloutState.CANARY), evidence(lower=1, upper=2), Decision.HOLD, "nothing to decide"),
    ],
)  # fmt: skip
def test_a_tick_decides_by_the_numbers_and_names_them(
    progress: Progress, seen: Comparison | None, decision: Decision, words: str
) -> None:
    verdict = tick(seen, POLICY, progress)
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
def test_guardrails_take_back_in_shadow_and_in_canary(
    field: str, limit: float, good: Comparison, bad: Comparison
) -> None:
    policy = replace(POLICY, **{field: limit})
    assert tick(good, policy, SHADOW).decision is Decision.ADVANCE
    assert tick(bad, policy, SHADOW).decision is Decision.REFUSE
    assert tick(good, policy, CANARY).decision is Decision.ADVANCE
    verdict = tick(bad, policy, CANARY)
    assert verdict.decision is Decision.ROLL_BACK
    assert verdict.by_guardrail
    alone = tick(bad, policy, EVERYBODY).decision
    assert alone is (Decision.ADVANCE if field == "max_score_shift" else Decision.ROLL_BACK)


def test_two_errors_in_ten_prove_nothing_but_half_of_fifty_do() -> None:
    policy = replace(POLICY, max_error_rate=0.1)
    assert tick(evidence(predictions=10, error_rate=0.2), policy, CANARY).decision is Decision.HOLD
    assert tick(evidence(predictions=50, error_rate=0.5), policy, CANARY).decision is Decision.ROLL_BACK


def test_the_wilson_bound_agrees_with_a_published_value() -> None:
    # Newcombe 1998, table I: 81 of 263, 95 % two-sided score interval 0.2553 to 0.3662.
    assert wilson_lower(81 / 263, 263, 1.959964) == pytest.approx(0.2553, abs=5e-5)
    assert wilson_lower(0.3, 0, 1.96) == 0


@pytest.mark.parametrize(("progress", "decision"), [(SHADOW, Decision.REFUSE), (CANARY, Decision.ROLL_BACK)])
def test_a_step_without_enough_evidence_ends_after_max_step_of_event_time(
    progress: Progress, decision: Decision
) -> None:
    policy = replace(POLICY, max_step_seconds=5 * 86_400)
    poor = evidence(labelled=3, predictions=5, days=5)
    assert tick(poor, policy, progress).decision is Decision.HOLD
    late = tick(replace(poor, last_event=START + timedelta(days=5, seconds=1)), policy, progress)
    assert late.decision is decision
    assert "max_step of 5 days" in late.reason


@given(
    st.floats(-1, 1), st.floats(0, 1), st.integers(0, 3000), st.integers(0, 3000), st.floats(0, 30), st.floats(0, 1),
    st.sampled_from([SHADOW, CANARY, EVERYBODY]),
)  # fmt: skip
def test_no_evidence_whatever_breaks_the_rules(
    delta: float, half: float, labelled: int, predictions: int, days: float, errors: float, progress: Progress
) -> None:
    policy = replace(POLICY, max_error_rate=0.3)
    seen = evidence(delta - half, delta + half, labelled, days, predictions, error_rate=errors)
    verdict = tick(seen, policy, progress)
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
            assert labelled < 30 or delta - half <= 0.02 or progress == EVERYBODY
    if verdict.decision is Decision.REFUSE:
        assert progress.state is RolloutState.SHADOW
    if verdict.decision is Decision.ROLL_BACK:
        assert progress.state is RolloutState.CANARY


class RolloutMachine(RuleBasedStateMachine):
    """An oracle of plain lists beside the machine: percents only rise, ends are final, steps are counted."""

    percents = (1.0, 10.0, 50.0, 100.0)

    def __init__(self) -> None:
        super().__init__()
        self.policy = RolloutPolicy(canary_percents=self.percents)
        self.at = Progress()
        self.moves = 0
        self.place = 0  # 0 = shadow, 1.. = canary steps, 5 = promoted
        self.over = False
        self.paused = False

    @precondition(lambda self: not self.over)
    @rule()
    def advance(self) -> None:
        self.at, self.moves = machine.advanced(self.at, self.policy), self.moves + 1
        self.place, self.paused = self.place + 1, False
        self.over = self.place == len(self.percents) + 1

    @precondition(lambda self: not self.over)
    @rule(how=st.sampled_from(["abort", "back"]))
    def finish(self, how: str) -> None:
        expected = (
            RolloutState.ABORTED
            if how == "abort"
            else RolloutState.REFUSED
            if self.place == 0
            else RolloutState.ROLLED_BACK
        )
        self.at = machine.aborted(self.at) if how == "abort" else machine.taken_back(self.at)
        assert self.at.state is expected
        assert self.at.challenger_percent == 0
        self.moves, self.over = self.moves + 1, True

    @precondition(lambda self: not self.over)
    @rule()
    def pause(self) -> None:
        before = self.at
        self.at = machine.paused(self.at)
        assert self.at.challenger_percent == before.challenger_percent
        self.moves += 0 if self.paused else 1
        self.paused = True

    @rule()
    def resume(self) -> None:
        if not self.paused or self.over:
            with pytest.raises(NotPaused):
                machine.resumed(self.at)
            return
        self.at, self.moves, self.paused = machine.resumed(self.at), self.moves + 1, False

    @precondition(lambda self: self.over)
    @rule(how=st.sampled_from([machine.aborted, machine.taken_back, machine.paused]))
    def ended_is_ended(self, how: object) -> None:
        with pytest.raises(RolloutEnded):
            how(self.at)  # type: ignore[operator]
        with pytest.raises(RolloutEnded):
            machine.advanced(self.at, self.policy)

    @invariant()
    def agrees_with_the_oracle(self) -> None:
        assert self.at.step == self.moves
        assert self.at.active is not self.over
        if self.over:
            return
        assert (self.at.state is RolloutState.PAUSED) == self.paused
        state = self.at.resume_to if self.paused else self.at.state
        assert state is (RolloutState.SHADOW if self.place == 0 else RolloutState.CANARY)
        assert self.at.challenger_percent == (0.0, *self.percents)[self.place]


TestRolloutMachine = RolloutMachine.TestCase
