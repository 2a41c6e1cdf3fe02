"""The rollout of a challenger as a pure state machine.

    SHADOW → CANARY(5) → CANARY(20) → CANARY(100) → PROMOTED       (percents from the policy)
    SHADOW → REFUSED     CANARY → ROLLED_BACK     any active → ABORTED     SHADOW | CANARY ⇄ PAUSED

`tick` looks at evidence and decides; `advanced`, `refused`, … give the state that follows. Nothing here knows the time:
how long a step has lasted is measured in event time, from the first to the last prediction of the evidence.

The rules, per step (all bounds one-sided at `alpha`):

* Guardrails come first, in shadow and canary. Error rate: breached when the Wilson lower bound (E. B. Wilson 1927) of
  the challenger's error rate is above `max_error_rate`, so that two errors in ten calls prove nothing but fifty do.
  p99 latency: from 100 predictions on. Score shift: breached when |mean difference| in champion standard deviations
  exceeds `max_score_shift` by more than its standard error times z.
* Shadow is paired on labelled rows: passes when the upper bound of the log-loss delta is at most
  `shadow_max_log_loss_delta`, is refused when the lower bound is above it; in between it holds, at most `max_step`.
* Canary compares different subjects. It is taken back when the lower bound is above `canary_max_log_loss_delta`, and goes
  on when the upper bound is at most that, or when predictions and bake suffice and nothing is breached. The second
  is deliberate: with 5 % of the subjects an interval is too wide to prove non-inferiority in any reasonable time (its
  power is small), so a canary step only has to leave it unrefuted; the proof was made in shadow, on paired rows.
* At 100 % the champion answers nobody: its last answers are of other hours and other weather, and prove nothing about the
  challenger's. The last step is decided by error rate, p99, predictions and bake alone.

Bounds are looked at repeatedly without a correction for peeking; `min_bake` and the minimal counts keep the first look late.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from statistics import NormalDist

from flywheel_common.errors import FailedPrecondition
from flywheel_registry.policy import RolloutPolicy, duration_text

MIN_LABELLED_FOR_BOUND = 30
"""Below this a bound from the normal approximation means nothing, whatever the policy says."""
MIN_PREDICTIONS_FOR_P99 = 100
"""A 99th percentile of fewer answers is their maximum."""


class RolloutState(StrEnum):
    SHADOW = "SHADOW"
    CANARY = "CANARY"
    PROMOTED = "PROMOTED"
    REFUSED = "REFUSED"
    ROLLED_BACK = "ROLLED_BACK"
    ABORTED = "ABORTED"
    PAUSED = "PAUSED"


ACTIVE = frozenset({RolloutState.SHADOW, RolloutState.CANARY, RolloutState.PAUSED})
"""States in which a rollout still owns its model's routing."""


class Decision(StrEnum):
    HOLD = "HOLD"
    ADVANCE = "ADVANCE"
    REFUSE = "REFUSE"
    ROLL_BACK = "ROLL_BACK"


class RolloutEnded(FailedPrecondition):
    reason = "ROLLOUT_ENDED"


class NotPaused(FailedPrecondition):
    reason = "NOT_PAUSED"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a rollout stands. `step` rises by one with every change of state, so that a decision can be matched with
    the step it was made for; `resume_to` is the state to go back to from PAUSED; `challenger_percent` is the share of
    subjects that the challenger answers."""

    state: RolloutState = RolloutState.SHADOW
    challenger_percent: float = 0.0
    step: int = 0
    resume_to: RolloutState | None = None

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


@dataclass(frozen=True, slots=True)
class Variant:
    """One side of a comparison."""

    predictions: int = 0
    labelled: int = 0
    error_rate: float = 0.0
    latency_p99_ms: float = 0.0
    score_mean: float = 0.0
    score_stddev: float = 0.0
    log_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Challenger against champion since a step began; deltas are mean log-loss challenger minus champion."""

    champion: Variant = Variant()
    challenger: Variant = Variant()
    first_event: datetime | None = None
    last_event: datetime | None = None
    labelled: int = 0
    log_loss_delta: float = 0.0
    log_loss_delta_upper: float = 0.0
    log_loss_delta_lower: float = 0.0
    score_shift: float = 0.0

    @property
    def bake_seconds(self) -> float:
        """Event time covered."""
        if self.first_event is None or self.last_event is None:
            return 0.0
        return (self.last_event - self.first_event).total_seconds()

    def values(self) -> dict[str, float]:
        """The numbers by name, to be frozen as evidence; a bound that is infinite proves nothing and is left out."""
        numbers: dict[str, float] = {
            "labelled": self.labelled,
            "bake_seconds": self.bake_seconds,
            "log_loss_delta": self.log_loss_delta,
            "log_loss_delta_upper": self.log_loss_delta_upper,
            "log_loss_delta_lower": self.log_loss_delta_lower,
            "score_shift": self.score_shift,
        }
        for side, variant in (("champion", self.champion), ("challenger", self.challenger)):
            numbers |= {
                f"{side}.predictions": variant.predictions,
                f"{side}.labelled": variant.labelled,
                f"{side}.error_rate": variant.error_rate,
                f"{side}.latency_p99_ms": variant.latency_p99_ms,
                f"{side}.score_mean": variant.score_mean,
                f"{side}.score_stddev": variant.score_stddev,
            }
            if variant.log_loss is not None:
                numbers[f"{side}.log_loss"] = variant.log_loss
        return {name: float(value) for name, value in numbers.items() if not math.isinf(value)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, why (one sentence with the numbers), and one finding per rule that was looked at. `by_guardrail`:
    a guardrail decided, not the quality of the scores."""

    decision: Decision
    reason: str
    findings: tuple[str, ...] = ()
    by_guardrail: bool = False


def tick(evidence: Comparison | None, policy: RolloutPolicy, progress: Progress) -> Verdict:
    """What to do now. `evidence` None: the monitor could not be asked, which is a reason to hold, never an error."""
    if progress.state not in (RolloutState.SHADOW, RolloutState.CANARY):
        return Verdict(Decision.HOLD, f"The rollout is {progress.state}: nothing to decide.")
    if evidence is None:
        return Verdict(
            Decision.HOLD, "The monitor could not be asked for evidence; nothing changes until it answers."
        )
    shadow = progress.state is RolloutState.SHADOW
    back = Decision.REFUSE if shadow else Decision.ROLL_BACK
    findings = guardrail_findings(evidence, policy, compared=not _alone(progress))
    breaches = [line for ok, line in findings if not ok]
    if breaches:
        return Verdict(
            back, f"Guardrail breached: {'; '.join(breaches)}.", _lines(findings), by_guardrail=True
        )
    verdict = _shadow(evidence, policy, findings) if shadow else _canary(evidence, policy, progress, findings)
    if (
        verdict.decision is Decision.HOLD
        and policy.max_step_seconds is not None
        and evidence.bake_seconds > policy.max_step_seconds
    ):
        limit = duration_text(policy.max_step_seconds)
        return Verdict(back, f"No decision within max_step of {limit}: {verdict.reason}", verdict.findings)
    return verdict


def _alone(progress: Progress) -> bool:
    """Whether the challenger answers everybody, so that nothing of the same hours is there to compare with."""
    return progress.state is RolloutState.CANARY and progress.challenger_percent >= 100


def guardrail_findings(
    evidence: Comparison, policy: RolloutPolicy, *, compared: bool = True
) -> list[tuple[bool, str]]:
    """(holds, line with the numbers) per guardrail that the policy sets; without `compared` only those that need no champion."""
    z = NormalDist().inv_cdf(1 - policy.level)
    challenger, champion = evidence.challenger, evidence.champion
    n = challenger.predictions
    found: list[tuple[bool, str]] = []
    if policy.max_error_rate:
        lower = wilson_lower(challenger.error_rate, n, z)
        rate = challenger.error_rate
        found.append(
            (
                lower <= policy.max_error_rate,
                f"error rate {rate:.4g} over {n} answers (lower bound {lower:.4g}), at most {policy.max_error_rate:g}",
            )
        )
    if policy.max_p99_ms and n >= MIN_PREDICTIONS_FOR_P99:
        p99 = challenger.latency_p99_ms
        found.append(
            (
                p99 <= policy.max_p99_ms,
                f"p99 latency {p99:.4g} ms over {n} answers, at most {policy.max_p99_ms:g} ms",
            )
        )
    if (
        compared
        and policy.max_score_shift
        and n > 1
        and champion.predictions > 1
        and champion.score_stddev > 0
    ):
        ratio = challenger.score_stddev / champion.score_stddev
        error = math.sqrt(1 / champion.predictions + ratio * ratio / n)
        lower = evidence.score_shift - z * error
        found.append(
            (
                lower <= policy.max_score_shift,
                f"score shift {evidence.score_shift:.4g} champion deviations (lower bound {lower:.4g}), at most {policy.max_score_shift:g}",
            )
        )
    return found


def wilson_lower(rate: float, n: int, z: float) -> float:
    """Lower end of the Wilson score interval for a share `rate` of `n`; 0 without observations."""
    if n <= 0:
        return 0.0
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n))


def _shadow(evidence: Comparison, policy: RolloutPolicy, findings: list[tuple[bool, str]]) -> Verdict:
    needed = max(policy.shadow_min_labelled, MIN_LABELLED_FOR_BOUND)
    missing = _missing(
        (evidence.labelled >= needed, f"{evidence.labelled} of {needed} rows labelled on both sides"),
        _baked(evidence, policy),
        findings,
    )
    if missing:
        return Verdict(Decision.HOLD, f"Evidence is missing: {missing}.", _lines(findings))
    limit = policy.shadow_max_log_loss_delta
    numbers = _delta(evidence, policy)
    if evidence.log_loss_delta_upper <= limit:
        findings.append((True, f"{numbers}: upper bound at most {limit:g}"))
        return Verdict(
            Decision.ADVANCE,
            f"Passed in shadow on {evidence.labelled} labelled rows: {numbers}, allowed {limit:g}.",
            _lines(findings),
        )
    findings.append((False, f"{numbers}: upper bound above {limit:g}"))
    if evidence.log_loss_delta_lower > limit:
        return Verdict(
            Decision.REFUSE,
            f"Worse in shadow on {evidence.labelled} labelled rows: {numbers}, even the lower bound is above {limit:g}.",
            _lines(findings),
        )
    return Verdict(
        Decision.HOLD,
        f"Undecided on {evidence.labelled} labelled rows: {numbers}, the interval holds {limit:g}; more labels are needed.",
        _lines(findings),
    )


def _canary(
    evidence: Comparison, policy: RolloutPolicy, progress: Progress, findings: list[tuple[bool, str]]
) -> Verdict:
    at = f"at {progress.challenger_percent:g} %"
    limit = policy.canary_max_log_loss_delta
    alone = _alone(progress)
    bounded = evidence.labelled >= MIN_LABELLED_FOR_BOUND and not alone
    if alone:
        numbers = "the champion answers nobody to compare with"
    elif bounded:
        numbers = _delta(evidence, policy)
    else:
        numbers = f"{evidence.labelled} labelled rows are too few for a log-loss bound"
    if bounded and evidence.log_loss_delta_lower > limit:
        findings.append((False, f"{numbers}: lower bound above {limit:g}"))
        return Verdict(
            Decision.ROLL_BACK,
            f"Worse {at} on {evidence.labelled} labelled rows: {numbers}, even the lower bound is above {limit:g}.",
            _lines(findings),
        )
    got, needed = evidence.challenger.predictions, max(policy.canary_min_predictions, 1)
    missing = _missing(
        (got >= needed, f"{got} of {needed} challenger answers"), _baked(evidence, policy), findings
    )
    if missing:
        return Verdict(Decision.HOLD, f"Evidence {at} is missing: {missing}.", _lines(findings))
    if bounded and evidence.log_loss_delta_upper <= limit:
        findings.append((True, f"{numbers}: upper bound at most {limit:g}, non-inferior"))
        return Verdict(
            Decision.ADVANCE,
            f"Not inferior {at} after {got} answers: {numbers}, allowed {limit:g}.",
            _lines(findings),
        )
    unrefuted = "" if alone else f"; non-inferiority within {limit:g} is not refuted"
    findings.append((True, f"{numbers}{unrefuted}"))
    return Verdict(
        Decision.ADVANCE, f"No breach {at} after {got} answers: {numbers}{unrefuted}.", _lines(findings)
    )


def _baked(evidence: Comparison, policy: RolloutPolicy) -> tuple[bool, str]:
    baked, needed = evidence.bake_seconds, policy.min_bake_seconds
    return baked >= needed, f"{duration_text(baked)} of {duration_text(needed)} of event time"


def _missing(*parts: tuple[bool, str] | list[tuple[bool, str]]) -> str:
    """Adds the rules to the findings (last argument); answers those that are not met, joined."""
    *rules, findings = parts
    assert isinstance(findings, list)
    checked = [rule for rule in rules if isinstance(rule, tuple)]
    findings.extend(checked)
    return ", ".join(line for ok, line in checked if not ok)


def _delta(evidence: Comparison, policy: RolloutPolicy) -> str:
    return (
        f"log-loss delta {evidence.log_loss_delta:+.5f} "
        f"[{evidence.log_loss_delta_lower:+.5f}, {evidence.log_loss_delta_upper:+.5f}] (one-sided {1 - policy.level:.0%} bounds)"
    )


def _lines(findings: list[tuple[bool, str]]) -> tuple[str, ...]:
    return tuple(("passed: " if ok else "FAILED: ") + line for ok, line in findings)


# ------------------------------------------------------------------------------------------------ transitions


def advanced(progress: Progress, policy: RolloutPolicy) -> Progress:
    """The next step: first canary percent, the next one, or PROMOTED after 100."""
    _require_active(progress)
    state = progress.resume_to if progress.state is RolloutState.PAUSED else progress.state
    if state is RolloutState.SHADOW:
        return Progress(RolloutState.CANARY, policy.percents[0], progress.step + 1)
    later = [p for p in policy.percents if p > progress.challenger_percent]
    if later:
        return Progress(RolloutState.CANARY, later[0], progress.step + 1)
    return Progress(RolloutState.PROMOTED, 100.0, progress.step + 1)


def taken_back(progress: Progress) -> Progress:
    """REFUSED from shadow, ROLLED_BACK from canary: the challenger answers nobody."""
    _require_active(progress)
    state = progress.resume_to if progress.state is RolloutState.PAUSED else progress.state
    end = RolloutState.REFUSED if state is RolloutState.SHADOW else RolloutState.ROLLED_BACK
    return Progress(end, 0.0, progress.step + 1)


def aborted(progress: Progress) -> Progress:
    """ABORTED: the champion serves everybody. Raises RolloutEnded."""
    _require_active(progress)
    return Progress(RolloutState.ABORTED, 0.0, progress.step + 1)


def paused(progress: Progress) -> Progress:
    """PAUSED with the routing as it is. Pausing what is paused changes nothing. Raises RolloutEnded."""
    _require_active(progress)
    if progress.state is RolloutState.PAUSED:
        return progress
    return replace(progress, state=RolloutState.PAUSED, resume_to=progress.state, step=progress.step + 1)


def resumed(progress: Progress) -> Progress:
    """Back to where it was paused. Raises NotPaused."""
    if progress.state is not RolloutState.PAUSED or progress.resume_to is None:
        raise NotPaused(
            f"The rollout is {progress.state}: only a PAUSED one can be resumed.", state=progress.state.value
        )
    return replace(progress, state=progress.resume_to, resume_to=None, step=progress.step + 1)


def _require_active(progress: Progress) -> None:
    if not progress.active:
        raise RolloutEnded(
            f"The rollout ended as {progress.state}: only SHADOW, CANARY and PAUSED rollouts can change; start a new one.",
            state=progress.state.value,
        )
