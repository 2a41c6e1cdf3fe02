"""The result of an evaluation: estimates of the whole set and of its slices, curve, thresholds, evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_job.evaluation.bootstrap import Estimate, bootstrap
from flywheel_job.evaluation.outputs import BinaryOutputs, Outputs, paired
from flywheel_job.evaluation.reliability import calibration_curve
from flywheel_job.evaluation.thresholds import Costs, Threshold, by_cost, by_f_beta
from flywheel_job.model_evaluation.collection import Collected
from flywheel_job.model_evaluation.params import EvaluationParams

CHAMPION, DIFFERENCE = "champion_", "difference_"
"""Prefixes of the champion's metrics on the same rows, and of the differences model − champion."""
MAX_SLICES = 50
"""Values of a slice column that are reported, those with most rows."""

Estimates = Mapping[str, Estimate]


@dataclass(frozen=True)
class Decisions:
    """The chosen threshold, and the one of the decisions that the metrics count."""

    chosen: Threshold
    by: str
    """`cost`, or `f_beta`."""
    used: float


def choose_threshold(outputs: BinaryOutputs, weights: Floats, params: EvaluationParams) -> Decisions:
    """Choose a threshold on these rows, and use the one of the job, else the model's own, else the chosen."""
    if params.false_positive_cost is not None and params.false_negative_cost is not None:
        costs = Costs(params.false_positive_cost, params.false_negative_cost)
        chosen, by = by_cost(outputs.ranking, outputs.labels, weights, costs), "cost"
    else:
        chosen, by = by_f_beta(outputs.ranking, outputs.labels, weights, params.beta), "f_beta"
    given = (params.threshold, outputs.threshold, chosen.threshold)
    return Decisions(chosen, by, next(one for one in given if one is not None))


def evaluate_rows(
    collected: Collected, params: EvaluationParams, seed: int, progress: Callable[[int], None]
) -> dict[str, Any]:
    """The parts of the report that depend on the rows. NaN is None, as JSON has none."""
    model, champion, weights = collected.model, collected.champion, collected.weights
    found: dict[str, Any] = {"rows": len(collected), "left_out_rows": collected.left_out}
    if isinstance(model, BinaryOutputs):
        decisions = choose_threshold(model, weights, params)
        model = model.with_threshold(decisions.used)
        found["threshold"] = asdict(decisions)
        found["calibration_curve"] = [
            asdict(one)
            for one in calibration_curve(model.labels, model.scores, weights, confidence=params.confidence)
        ]
        if isinstance(champion, BinaryOutputs):
            own = champion.threshold if params.threshold is None else None
            champion = champion.with_threshold(decisions.used if own is None else own)
    whole = _estimates(model, champion, weights, params, np.random.default_rng(seed), progress)
    found |= _by_model(whole)
    found["slices"] = {}
    for place, column in enumerate(collected.slices):
        groups = column.rows_by_value()
        parts = []
        for number, (value, rows) in enumerate(groups[:MAX_SLICES]):
            rng = np.random.default_rng((seed, place, number))
            some = _slice(model, champion, weights, rows, params, rng)
            parts.append({"value": value, "rows": len(rows), **_by_model(some)})
        found["slices"][column.name] = {"values": parts, "values_in_total": len(groups)}
    return found


def _slice(
    model: Outputs,
    champion: Outputs | None,
    weights: Floats,
    rows: Ints,
    params: EvaluationParams,
    rng: np.random.Generator,
) -> Estimates:
    of_champion = champion.take(rows) if champion is not None else None
    return _estimates(model.take(rows), of_champion, weights[rows], params, rng, lambda _: None)


def _estimates(
    model: Outputs,
    champion: Outputs | None,
    weights: Floats,
    params: EvaluationParams,
    rng: np.random.Generator,
    progress: Callable[[int], None],
) -> Estimates:
    def statistics(counts: Floats) -> Mapping[str, float]:
        used = weights * counts
        return model.metrics(used) if champion is None else paired(model, champion, used)

    return bootstrap(
        statistics,
        len(model),
        samples=params.samples,
        confidence=params.confidence,
        rng=rng,
        progress=progress,
    )


def _by_model(estimates: Estimates) -> dict[str, Any]:
    """Estimates of the model, of the champion, and of the differences."""
    found: dict[str, Any] = {"metrics": {}, "champion_metrics": {}, "differences": {}}
    for name, estimate in estimates.items():
        part, key = "metrics", name
        if name.startswith(CHAMPION):
            part, key = "champion_metrics", name.removeprefix(CHAMPION)
        elif name.startswith(DIFFERENCE):
            part, key = "differences", name.removeprefix(DIFFERENCE)
        found[part][key] = {field: _finite(value) for field, value in asdict(estimate).items()}
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def metric_values(report: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of the whole set: `auc`, `auc_low`, `auc_high`; with a champion `champion_auc`,
    `difference_auc`, `difference_auc_low`, `difference_auc_high`; `rows`; and of a BINARY model the
    `threshold` of its decisions."""
    values = {"rows": float(report["rows"])}
    if "threshold" in report:
        values["threshold"] = report["threshold"]["used"]
    for prefix, part in (("", "metrics"), (DIFFERENCE, "differences")):
        for name, one in report[part].items():
            values |= {f"{prefix}{name}": one["value"]}
            values |= {f"{prefix}{name}_{bound}": one[bound] for bound in ("low", "high")}
    values |= {f"{CHAMPION}{name}": one["value"] for name, one in report["champion_metrics"].items()}
    return {name: value for name, value in values.items() if value is not None}


def evidence_values(report: Mapping[str, Any]) -> dict[str, float]:
    """What gates read: the numbers of the whole set, and `auc{origin=JFK}` and `champion_auc{origin=JFK}` of
    the slices with a value."""
    values = metric_values(report)
    for column, found in report["slices"].items():
        for one in found["values"]:
            if one["value"] is None:
                continue
            suffix = f"{{{column}={one['value']}}}"
            values[f"rows{suffix}"] = float(one["rows"])
            for prefix, part in (("", "metrics"), (CHAMPION, "champion_metrics")):
                for name, estimate in one[part].items():
                    if estimate["value"] is not None:
                        values[f"{prefix}{name}{suffix}"] = estimate["value"]
    return values
