"""The guardrails of a rollout: error rate, p99 latency and score shift of the challenger."""

from __future__ import annotations

import math
from statistics import NormalDist

from flywheel_registry.evidence.findings import Findings
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.comparison import Comparison

MIN_PREDICTIONS_FOR_P99 = 100
"""The 99th percentile of fewer predictions is their maximum."""


def evaluate_guardrails(
    evidence: Comparison, policy: RolloutPolicy, *, with_champion: bool = True
) -> Findings:
    """Return one finding for each guardrail that the policy sets.

    Without `with_champion` only those that need no comparison with the champion are evaluated.
    """
    z = NormalDist().inv_cdf(1 - policy.level)
    challenger, champion = evidence.challenger, evidence.champion
    n = challenger.predictions
    findings = Findings()
    if policy.max_error_rate:
        rate = challenger.error_rate
        lower = wilson_lower(rate, n, z)
        findings.add(
            lower <= policy.max_error_rate,
            f"error rate {rate:.4g} over {n} answers (lower bound {lower:.4g}), "
            f"at most {policy.max_error_rate:g}",
        )
    if policy.max_p99_ms and n >= MIN_PREDICTIONS_FOR_P99:
        p99 = challenger.latency_p99_ms
        findings.add(
            p99 <= policy.max_p99_ms,
            f"p99 latency {p99:.4g} ms over {n} answers, at most {policy.max_p99_ms:g} ms",
        )
    comparable = n > 1 and champion.predictions > 1 and champion.score_stddev > 0
    if with_champion and policy.max_score_shift and comparable:
        ratio = challenger.score_stddev / champion.score_stddev
        standard_error = math.sqrt(1 / champion.predictions + ratio * ratio / n)
        lower = evidence.score_shift - z * standard_error
        findings.add(
            lower <= policy.max_score_shift,
            f"score shift {evidence.score_shift:.4g} champion deviations (lower bound {lower:.4g}), "
            f"at most {policy.max_score_shift:g}",
        )
    return findings


def wilson_lower(rate: float, n: int, z: float) -> float:
    """Return the lower end of the Wilson score interval for a share `rate` of `n`; 0 without observations."""
    if n <= 0:
        return 0.0
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n))
