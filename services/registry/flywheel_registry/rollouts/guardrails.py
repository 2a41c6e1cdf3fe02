"""The guardrails of a rollout: error rate, p99 latency and score shift of the challenger."""

from __future__ import annotations

from flywheel_registry.evidence.findings import Findings
from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.step_verdict import StepMetric, StepVerdict

_LINES = {
    StepMetric.ERROR_RATE: "error rate {value:.4g}{bound} over {rows} answers, at most {limit:g}",
    StepMetric.P99_MS: "p99 latency {value:.4g} ms{bound} over {rows} answers, at most {limit:g} ms",
    StepMetric.SCORE_SHIFT: "score shift {value:.4g} champion deviations{bound}, at most {limit:g}",
}


def evaluate_guardrails(evidence: Comparison) -> Findings:
    """Return one finding for each guardrail of the step: it holds unless the monitor proves a breach."""
    findings = Findings()
    for metric, line in _LINES.items():
        found = evidence.verdicts.get(metric)
        if found is not None:
            findings.add(not found.breached, _line(line, found))
    return findings


def _line(line: str, found: StepVerdict) -> str:
    bound = "" if found.lower is None else f" (lower bound {found.lower:.4g})"
    return line.format(value=found.value, bound=bound, rows=found.rows, limit=found.limit)
