"""The offline gate: bounds on stored metrics, absolute and against the champion.

Every rule gives one finding, a line that names the numbers, so that a refused version explains itself.
A metric that is missing or not finite fails its rule: absent evidence is never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flywheel_registry.policy import GatePolicy, MetricThreshold

ROWS = "rows"
"""Metric that holds the number of evaluation rows."""
SAME_ROWS = "champion_"
"""Prefix of the champion's metrics on the very rows the version was evaluated on. Where they are there they are what a
difference is taken from: two holdouts of different months are not comparable."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """`values` are the numbers that were looked at; `findings` has one line per rule."""

    passed: bool
    findings: tuple[str, ...]
    values: Mapping[str, float]


def evaluate_offline(
    policy: GatePolicy, metrics: Mapping[str, float], champion: Mapping[str, float] | None
) -> GateResult:
    """The gate NONE → STAGING. `champion` holds the champion's metrics, None while there is no champion: then rules
    on deltas are skipped, and the findings say so."""
    findings: list[tuple[bool, str]] = []
    values: dict[str, float] = {}
    if policy.min_evaluation_rows:
        rows = metrics.get(ROWS)
        if rows is None:
            findings.append(
                (
                    False,
                    f"evaluation rows: unknown (metric {ROWS!r} is missing), at least {policy.min_evaluation_rows} needed",
                )
            )
        else:
            values[ROWS] = rows
            findings.append(
                (
                    rows >= policy.min_evaluation_rows,
                    f"evaluation rows: {rows:g}, at least {policy.min_evaluation_rows} needed",
                )
            )
    for threshold in policy.offline:
        _bounds(threshold, metrics, findings, values)
        _deltas(threshold, metrics, champion, findings, values)
    if not findings:
        findings.append((True, "the model has no offline rules"))
    return GateResult(
        all(ok for ok, _ in findings),
        tuple(("passed: " if ok else "FAILED: ") + line for ok, line in findings),
        values,
    )


def _bounds(
    threshold: MetricThreshold,
    metrics: Mapping[str, float],
    findings: list[tuple[bool, str]],
    values: dict[str, float],
) -> None:
    if threshold.min is None and threshold.max is None:
        return
    value = _finite(metrics.get(threshold.metric))
    rule = _range(threshold.min, threshold.max)
    if value is None:
        findings.append((False, f"{threshold.metric}: missing or not finite, must be {rule}"))
        return
    values[threshold.metric] = value
    findings.append(
        (_inside(value, threshold.min, threshold.max), f"{threshold.metric}: {value:.6g}, must be {rule}")
    )


def _deltas(
    threshold: MetricThreshold,
    metrics: Mapping[str, float],
    champion: Mapping[str, float] | None,
    findings: list[tuple[bool, str]],
    values: dict[str, float],
) -> None:
    if threshold.min_delta is None and threshold.max_delta is None:
        return
    name = threshold.metric
    if champion is None:
        findings.append((True, f"{name} against the champion: skipped, there is no champion"))
        return
    value = _finite(metrics.get(name))
    paired = f"{SAME_ROWS}{name}"
    base = _finite(metrics[paired] if paired in metrics else champion.get(name))
    rule = _range(threshold.min_delta, threshold.max_delta)
    if value is None or base is None:
        who = "the version" if value is None else "the champion"
        findings.append(
            (
                False,
                f"{name} against the champion: missing or not finite for {who}, difference must be {rule}",
            )
        )
        return
    delta = value - base
    values |= {name: value, f"champion.{name}": base, f"delta.{name}": delta}
    ok = _inside(delta, threshold.min_delta, threshold.max_delta)
    findings.append(
        (ok, f"{name} against the champion: {value:.6g} - {base:.6g} = {delta:+.6g}, must be {rule}")
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _inside(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _range(low: float | None, high: float | None) -> str:
    parts = ([f"at least {low:g}"] if low is not None else []) + (
        [f"at most {high:g}"] if high is not None else []
    )
    return " and ".join(parts)
