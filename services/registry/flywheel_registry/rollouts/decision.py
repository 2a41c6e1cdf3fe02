"""The rules that decide what a rollout does next, from the evidence of its current step.

All bounds are one-sided at the policy's `alpha`. Durations are the event time that the evidence
covers (`Comparison.bake_seconds`); nothing here reads a clock.

* Guardrails come first, in shadow and canary. Error rate: breached when the Wilson lower bound (E. B. Wilson
  1927) of the challenger's error rate is above `max_error_rate`: at a limit of 0.1, two errors in ten answers
  are no breach, 25 in 50 are. p99 latency: checked from 100 predictions on. Score shift: breached when |mean
  difference| in champion standard deviations exceeds `max_score_shift` by more than z standard errors.
* Shadow compares both on the same labelled rows. It passes when the upper bound of the log-loss delta is at
  most `shadow_max_log_loss_delta` and is refused when the lower bound is above it. In between it holds, for
  at most `max_step`.
* Canary compares different subjects. It is rolled back when the lower bound is above
  `canary_max_log_loss_delta`. It advances when the upper bound is at most that, or when there are enough
  predictions and bake time without a breach. The second way is deliberate: with 5 % of the subjects the
  interval is too wide to prove non-inferiority in a reasonable time, and shadow has proven it on paired rows.
* At 100 % the champion has no concurrent traffic, and its older answers are not comparable. The last step is
  decided by error rate, p99 latency, predictions and bake time alone.

The bounds are evaluated repeatedly without a correction for multiple looks; `min_bake` and the minimal counts
delay the first look.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from flywheel_registry.evidence.findings import Findings
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.guardrails import evaluate_guardrails
from flywheel_registry.rollouts.state_machine import Progress, RolloutState

MIN_LABELLED_FOR_BOUND = 30
"""With fewer labelled rows the normal approximation of a bound is not valid, whatever the policy allows."""


class Decision(StrEnum):
    """What a rollout does next."""

    HOLD = "HOLD"
    ADVANCE = "ADVANCE"
    REFUSE = "REFUSE"
    ROLL_BACK = "ROLL_BACK"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, its reason (one sentence with the numbers) and one finding per evaluated rule.

    `by_guardrail` means that a guardrail decided, not the quality of the scores.
    """

    decision: Decision
    reason: str
    findings: tuple[str, ...] = ()
    by_guardrail: bool = False


def decide(evidence: Comparison | None, policy: RolloutPolicy, progress: Progress) -> Verdict:
    """Return the verdict on the current step. Missing evidence (None) holds the rollout."""
    if progress.state not in (RolloutState.SHADOW, RolloutState.CANARY):
        return Verdict(Decision.HOLD, f"The rollout is {progress.state}: nothing to decide.")
    if evidence is None:
        return Verdict(Decision.HOLD, "The monitor provides no evidence: the rollout holds until it does.")
    in_shadow = progress.state is RolloutState.SHADOW
    withdraw = Decision.REFUSE if in_shadow else Decision.ROLL_BACK
    findings = evaluate_guardrails(evidence, policy, with_champion=not _at_100_percent(progress))
    if breaches := findings.failed():
        reason = f"Guardrail breached: {'; '.join(breaches)}."
        return Verdict(withdraw, reason, findings.lines(), by_guardrail=True)
    verdict = (
        _decide_shadow(evidence, policy, findings)
        if in_shadow
        else _decide_canary(evidence, policy, progress, findings)
    )
    limit = policy.max_step_seconds
    if verdict.decision is Decision.HOLD and limit is not None and evidence.bake_seconds > limit:
        reason = f"No decision within max_step of {duration_text(limit)}: {verdict.reason}"
        return Verdict(withdraw, reason, verdict.findings)
    return verdict


def _at_100_percent(progress: Progress) -> bool:
    """Whether the challenger answers all subjects, so that the champion has no concurrent traffic."""
    return progress.state is RolloutState.CANARY and progress.challenger_percent >= 100


def _decide_shadow(evidence: Comparison, policy: RolloutPolicy, findings: Findings) -> Verdict:
    needed = max(policy.shadow_min_labelled, MIN_LABELLED_FOR_BOUND)
    labelled = evidence.labelled >= needed, f"{evidence.labelled} of {needed} rows labelled on both sides"
    if missing := _missing_evidence(findings, labelled, _bake_time(evidence, policy)):
        return Verdict(Decision.HOLD, f"Evidence is missing: {missing}.", findings.lines())
    limit = policy.shadow_max_log_loss_delta
    numbers, rows = _log_loss_delta(evidence, policy), f"{evidence.labelled} labelled rows"
    if evidence.log_loss_delta_upper <= limit:
        findings.add(True, f"{numbers}: upper bound at most {limit:g}")
        decision, reason = Decision.ADVANCE, f"Passed in shadow on {rows}: {numbers}, allowed {limit:g}."
        return Verdict(decision, reason, findings.lines())
    findings.add(False, f"{numbers}: upper bound above {limit:g}")
    if evidence.log_loss_delta_lower > limit:
        decision = Decision.REFUSE
        reason = f"Worse in shadow on {rows}: {numbers}, even the lower bound is above {limit:g}."
    else:
        decision = Decision.HOLD
        reason = f"Undecided on {rows}: {numbers}, the interval contains {limit:g}; more labels are needed."
    return Verdict(decision, reason, findings.lines())


def _decide_canary(
    evidence: Comparison, policy: RolloutPolicy, progress: Progress, findings: Findings
) -> Verdict:
    step = f"at {progress.challenger_percent:g} %"
    limit = policy.canary_max_log_loss_delta
    alone = _at_100_percent(progress)
    bounded = evidence.labelled >= MIN_LABELLED_FOR_BOUND and not alone
    if alone:
        numbers = "no champion traffic to compare with"
    elif bounded:
        numbers = _log_loss_delta(evidence, policy)
    else:
        numbers = f"{evidence.labelled} labelled rows are too few for a log-loss bound"
    if bounded and evidence.log_loss_delta_lower > limit:
        findings.add(False, f"{numbers}: lower bound above {limit:g}")
        reason = (
            f"Worse {step} on {evidence.labelled} labelled rows: {numbers}, "
            f"even the lower bound is above {limit:g}."
        )
        return Verdict(Decision.ROLL_BACK, reason, findings.lines())
    count, needed = evidence.challenger.predictions, max(policy.canary_min_predictions, 1)
    answers = count >= needed, f"{count} of {needed} challenger answers"
    if missing := _missing_evidence(findings, answers, _bake_time(evidence, policy)):
        return Verdict(Decision.HOLD, f"Evidence {step} is missing: {missing}.", findings.lines())
    if bounded and evidence.log_loss_delta_upper <= limit:
        findings.add(True, f"{numbers}: upper bound at most {limit:g}, non-inferior")
        reason = f"Not inferior {step} after {count} answers: {numbers}, allowed {limit:g}."
    else:
        unrefuted = "" if alone else f"; non-inferiority within {limit:g} is not refuted"
        findings.add(True, f"{numbers}{unrefuted}")
        reason = f"No breach {step} after {count} answers: {numbers}{unrefuted}."
    return Verdict(Decision.ADVANCE, reason, findings.lines())


def _bake_time(evidence: Comparison, policy: RolloutPolicy) -> tuple[bool, str]:
    baked, needed = evidence.bake_seconds, policy.min_bake_seconds
    return baked >= needed, f"{duration_text(baked)} of {duration_text(needed)} of event time"


def _missing_evidence(findings: Findings, *rules: tuple[bool, str]) -> str:
    """Add the rules to the findings; return the lines of those that do not hold, joined."""
    return ", ".join([line for holds, line in rules if not findings.add(holds, line)])


def _log_loss_delta(evidence: Comparison, policy: RolloutPolicy) -> str:
    bounds = f"[{evidence.log_loss_delta_lower:+.5f}, {evidence.log_loss_delta_upper:+.5f}]"
    return f"log-loss delta {evidence.log_loss_delta:+.5f} {bounds} (one-sided {1 - policy.level:.0%} bounds)"


def duration_text(seconds: float) -> str:
    """Return a duration as people read it: `2 days, 3:00:00`."""
    return str(timedelta(seconds=round(seconds)))
