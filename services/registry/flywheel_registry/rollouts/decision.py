"""The rules that decide what a rollout does next, from the evidence of its current step.

Whether a limit is kept or breached is the monitor's verdict on the predictions of exactly this step, valid at
every look, at the levels of `StepPolicy` (`step_verdict`). No statistics are computed here, and a limit
without a verdict holds the rollout. A bake needs both the event time that the evidence covers
(`Comparison.bake_seconds`) and a least wall time of the step: a caller chooses event times, but not how fast
the clock runs. Nothing here reads a clock.

* Guardrails come first, in shadow and canary: error rate, p99 latency and score shift. A breach ends the
  rollout and leaves the version as it was: errors and latency can have causes outside the model.
* Shadow compares both on the same labelled rows. It passes when the log-loss delta is WITHIN its limit. The
  version is rejected when it is BREACHED. In between it holds.
* Canary compares different subjects. It is rolled back, and the version rejected, when the log-loss delta is
  BREACHED. It advances when it is WITHIN, or when there are enough predictions and bake time without a
  breach. The second way is deliberate: with 5 % of the subjects the interval is too wide to prove
  non-inferiority in a reasonable time, and shadow has proven it on paired rows.
* At 100 % the champion has no concurrent traffic, and its older answers are not comparable. The last step is
  decided by error rate, p99 latency, predictions and bake time alone.
* An A/B test stays at its split until the verdict of its experiment, which the monitor computes: SHIP
  promotes, ROLL_BACK ends it and leaves the version as it was. Without an experiment it waits for
  ConcludeRollout; only guardrails end it earlier.
* A step that holds longer than `max_step` expires: the rollout ends, the version stays as it was.
"""

from __future__ import annotations

from dataclasses import replace

from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.evidence.findings import Findings
from flywheel_registry.policies.rollout_policy import RolloutPolicy, StepPolicy
from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.guardrails import evaluate_guardrails
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.rollouts.step_verdict import LimitVerdict, StepMetric, StepVerdict, step_limits
from flywheel_registry.rollouts.verdict import Decision, Verdict, duration_text, expire_after


def decide(
    evidence: Comparison | None, policy: RolloutPolicy, progress: Progress, wall_seconds: float
) -> Verdict:
    """Return the verdict on the current step, which has lasted `wall_seconds` without pauses.

    Missing evidence (None) holds the rollout, for at most `max_step`.
    """
    if progress.state not in (RolloutState.SHADOW, RolloutState.CANARY):
        return Verdict(Decision.HOLD, f"The rollout is {progress.state}: nothing to decide.")
    step = policy.step(progress.challenger_percent)
    if evidence is None:
        verdict = Verdict(Decision.HOLD, "The monitor provides no evidence: the rollout holds until it does.")
    else:
        verdict = _judge(evidence, policy, step, progress, wall_seconds)
    verdict = expire_after(verdict, wall_seconds, step.max_step_seconds, "max_step")
    numbers = {} if evidence is None else evidence.values()
    return replace(verdict, values={**numbers, "wall_seconds": wall_seconds})


def _judge(
    evidence: Comparison, policy: RolloutPolicy, step: StepPolicy, progress: Progress, wall_seconds: float
) -> Verdict:
    in_shadow = progress.state is RolloutState.SHADOW
    for metric, limit in step_limits(policy, progress).limits.items():
        found = evidence.verdicts.get(metric)
        if found is None or found.limit != limit:
            return Verdict(Decision.HOLD, f"The monitor has no verdict on {metric} with the limit {limit:g}.")
    findings = evaluate_guardrails(evidence)
    if breaches := findings.failed():
        withdraw = Decision.REFUSE if in_shadow else Decision.ROLL_BACK
        return Verdict(withdraw, f"Guardrail breached: {'; '.join(breaches)}.", findings.lines())
    bake = _bake_time(evidence, step, wall_seconds)
    if in_shadow:
        return _decide_shadow(evidence, step, findings, bake)
    if policy.until_verdict:
        return _decide_test(evidence.experiment, step, findings)
    return _decide_canary(evidence, step, findings, bake)


Rule = tuple[bool, str]
"""Whether a rule holds, and its line with the numbers."""


def _decide_shadow(
    evidence: Comparison, step: StepPolicy, findings: Findings, bake: tuple[Rule, Rule]
) -> Verdict:
    found = evidence.verdicts[StepMetric.LOSS_DELTA]
    labelled = (
        found.rows >= step.min_samples,
        f"{found.rows} of {step.min_samples} rows labelled on both sides",
    )
    bounded = found.upper is not None, "enough labelled rows for a log-loss bound"
    if missing := _missing_evidence(findings, labelled, bounded, *bake):
        return Verdict(Decision.HOLD, f"Evidence is missing: {missing}.", findings.lines())
    limit, numbers, rows = found.limit, _log_loss_delta(found, step), f"{found.rows} labelled rows"
    within = found.verdict is LimitVerdict.WITHIN
    findings.add(within, f"{numbers}: upper bound {'at most' if within else 'above'} {limit:g}")
    if within:
        reason = f"Passed in shadow on {rows}: {numbers}, allowed {limit:g}."
        return Verdict(Decision.ADVANCE, reason, findings.lines())
    if found.breached:
        reason = f"Worse in shadow on {rows}: {numbers}, even the lower bound is above {limit:g}."
        return Verdict(Decision.REFUSE, reason, findings.lines(), rejects=True)
    reason = f"Undecided on {rows}: {numbers}; {limit:g} is within the bounds, and more labels are needed."
    return Verdict(Decision.HOLD, reason, findings.lines())


def _decide_test(experiment: ExperimentVerdict | None, step: StepPolicy, findings: Findings) -> Verdict:
    """The verdict on an A/B test."""
    continues = f"The A/B test at {step.percent:g} % continues until its verdict"
    if experiment is None:
        reason = f"{continues}: the monitor has no running experiment of it."
        return Verdict(Decision.HOLD, reason, findings.lines())
    says = f"{experiment.experiment}: {experiment.verdict}: {experiment.reason}"
    match experiment.verdict:
        case "SHIP":
            findings.add(True, says)
            return Verdict(Decision.ADVANCE, says, findings.lines())
        case "ROLL_BACK":
            findings.add(False, says)
            return Verdict(Decision.ROLL_BACK, says, findings.lines())
    return Verdict(Decision.HOLD, f"{continues}. {says}", findings.lines())


def _decide_canary(
    evidence: Comparison, step: StepPolicy, findings: Findings, bake: tuple[Rule, Rule]
) -> Verdict:
    at, found = f"at {step.percent:g} %", evidence.verdicts.get(StepMetric.LOSS_DELTA)
    numbers = "no champion traffic to compare with" if found is None else _log_loss_delta(found, step)
    if found is not None and found.breached:
        findings.add(False, f"{numbers}: lower bound above {found.limit:g}")
        reason = (
            f"Worse {at} on {found.rows} labelled rows: {numbers}, "
            f"even the lower bound is above {found.limit:g}."
        )
        return Verdict(Decision.ROLL_BACK, reason, findings.lines(), rejects=True)
    count, needed = evidence.challenger.predictions, max(step.min_samples, 1)
    answers = count >= needed, f"{count} of {needed} challenger answers"
    if missing := _missing_evidence(findings, answers, *bake):
        return Verdict(Decision.HOLD, f"Evidence {at} is missing: {missing}.", findings.lines())
    if found is not None and found.verdict is LimitVerdict.WITHIN:
        findings.add(True, f"{numbers}: upper bound at most {found.limit:g}, non-inferior")
        reason = f"Not inferior {at} after {count} answers: {numbers}, allowed {found.limit:g}."
    else:
        unrefuted = "" if found is None else f"; non-inferiority within {found.limit:g} is not refuted"
        findings.add(True, f"{numbers}{unrefuted}")
        reason = f"No breach {at} after {count} answers: {numbers}{unrefuted}."
    return Verdict(Decision.ADVANCE, reason, findings.lines())


def _bake_time(evidence: Comparison, step: StepPolicy, wall_seconds: float) -> tuple[Rule, Rule]:
    baked, needed, least = evidence.bake_seconds, step.min_bake_seconds, step.min_wall_bake_seconds
    return (
        (baked >= needed, f"{duration_text(baked)} of {duration_text(needed)} of event time"),
        (wall_seconds >= least, f"{duration_text(wall_seconds)} of {duration_text(least)} of wall time"),
    )


def _missing_evidence(findings: Findings, *rules: Rule) -> str:
    """Add the rules to the findings; return the lines of those that do not hold, joined."""
    return ", ".join([line for holds, line in rules if not findings.add(holds, line)])


def _log_loss_delta(found: StepVerdict, step: StepPolicy) -> str:
    """Return the monitor's numbers as a text."""
    if found.lower is None or found.upper is None:
        return f"{found.rows} labelled rows are too few for a log-loss bound"
    return (
        f"log-loss delta {found.value:+.5f} [{found.lower:+.5f} at {1 - step.breach_level:.4g}, "
        f"{found.upper:+.5f} at {1 - step.pass_level:.4g}, one-sided and valid at every look]"
    )
