"""The guardrails of a rollout: error rate, p99 latency and score shift of the challenger."""

from __future__ import annotations

import math

from flywheel_registry.evidence.findings import Findings
from flywheel_registry.policies.rollout_policy import StepPolicy
from flywheel_registry.rollouts.bounds import exceeds_rate, standard_errors
from flywheel_registry.rollouts.comparison import Comparison


def evaluate_guardrails(evidence: Comparison, step: StepPolicy, *, with_champion: bool = True) -> Findings:
    """Return one finding for each guardrail that the step sets.

    Without `with_champion` only those that need no comparison with the champion are evaluated.
    """
    challenger, champion = evidence.challenger, evidence.champion
    n = challenger.predictions
    findings = Findings()
    if step.max_error_rate:
        rate = challenger.error_rate
        findings.add(
            not exceeds_rate(round(rate * n), n, step.max_error_rate, step.breach_level),
            f"error rate {rate:.4g} over {n} answers, at most {step.max_error_rate:g}",
        )
    if step.max_p99_ms and n:
        findings.add(
            evidence.p99_lower_ms <= step.max_p99_ms,
            f"p99 latency {challenger.latency_p99_ms:.4g} ms (lower bound {evidence.p99_lower_ms:.4g}) over "
            f"{n} answers, at most {step.max_p99_ms:g} ms",
        )
    comparable = n > 1 and champion.predictions > 1 and champion.score_stddev > 0
    if with_champion and step.max_score_shift and comparable:
        ratio = challenger.score_stddev / champion.score_stddev
        standard_error = math.sqrt(1 / champion.predictions + ratio * ratio / n)
        lower = evidence.score_shift - standard_error * standard_errors(
            n, step.breach_level, step.min_samples
        )
        findings.add(
            lower <= step.max_score_shift,
            f"score shift {evidence.score_shift:.4g} champion deviations (lower bound {lower:.4g}), "
            f"at most {step.max_score_shift:g}",
        )
    return findings
