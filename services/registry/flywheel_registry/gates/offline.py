"""The offline gate: bounds on the metrics of a version, absolute and relative to the champion.

Each rule adds one finding with its numbers. A metric that is missing or not finite fails its rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flywheel_registry.evidence.findings import Findings
from flywheel_registry.policies.gate_policy import GatePolicy, MetricThreshold

NO_CHAMPION = "no champion to compare with: decided on the offline gate alone"
"""Recorded as the reason when a version is promoted without a comparison."""
ROWS_METRIC = "rows"
"""The metric that holds the number of evaluation rows."""
CHAMPION_PREFIX = "champion_"
"""Prefix of the champion's metrics on the rows that the version was evaluated on.

Where such a metric exists, the difference is taken from it instead of from the champion's own evaluation: two
holdouts of different months are not comparable.
"""


@dataclass(frozen=True, slots=True)
class GateResult:
    """The result of gates: `values` are the numbers they used, `findings` has one line per rule."""

    passed: bool
    findings: tuple[str, ...]
    values: Mapping[str, float]


def evaluate_offline(
    policy: GatePolicy, metrics: Mapping[str, float], champion: Mapping[str, float] | None
) -> GateResult:
    """Evaluate the gate NONE → STAGING.

    `champion` holds the champion's metrics, None while there is no champion; rules on differences are then
    skipped, and a finding records this.
    """
    findings = Findings()
    values: dict[str, float] = {}
    if policy.min_evaluation_rows:
        needed = f"at least {policy.min_evaluation_rows} needed"
        rows = metrics.get(ROWS_METRIC)
        if rows is None:
            findings.add(False, f"evaluation rows: unknown (metric {ROWS_METRIC!r} is missing), {needed}")
        else:
            values[ROWS_METRIC] = rows
            findings.add(rows >= policy.min_evaluation_rows, f"evaluation rows: {rows:g}, {needed}")
    for threshold in policy.offline:
        _check_bounds(threshold, metrics, findings, values)
        _check_difference(threshold, metrics, champion, findings, values)
    if not findings:
        findings.add(True, "the model has no offline rules")
    return GateResult(findings.passed, findings.lines(), values)


def _check_bounds(
    threshold: MetricThreshold, metrics: Mapping[str, float], findings: Findings, values: dict[str, float]
) -> None:
    if threshold.min is None and threshold.max is None:
        return
    value = _finite(metrics.get(threshold.metric))
    rule = _range(threshold.min, threshold.max)
    if value is None:
        findings.add(False, f"{threshold.metric}: missing or not finite, must be {rule}")
        return
    values[threshold.metric] = value
    findings.add(
        _within(value, threshold.min, threshold.max), f"{threshold.metric}: {value:.6g}, must be {rule}"
    )


def _check_difference(
    threshold: MetricThreshold,
    metrics: Mapping[str, float],
    champion: Mapping[str, float] | None,
    findings: Findings,
    values: dict[str, float],
) -> None:
    if threshold.min_delta is None and threshold.max_delta is None:
        return
    name = threshold.metric
    if champion is None:
        findings.add(True, f"{name} against the champion: skipped, there is no champion")
        return
    value = _finite(metrics.get(name))
    on_same_rows = f"{CHAMPION_PREFIX}{name}"
    base = _finite(metrics[on_same_rows] if on_same_rows in metrics else champion.get(name))
    rule = _range(threshold.min_delta, threshold.max_delta)
    if value is None or base is None:
        side = "the version" if value is None else "the champion"
        findings.add(
            False, f"{name} against the champion: missing or not finite for {side}, difference must be {rule}"
        )
        return
    delta = value - base
    values |= {name: value, f"champion.{name}": base, f"delta.{name}": delta}
    findings.add(
        _within(delta, threshold.min_delta, threshold.max_delta),
        f"{name} against the champion: {value:.6g} - {base:.6g} = {delta:+.6g}, must be {rule}",
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _range(low: float | None, high: float | None) -> str:
    bounds = [] if low is None else [f"at least {low:g}"]
    if high is not None:
        bounds.append(f"at most {high:g}")
    return " and ".join(bounds)
