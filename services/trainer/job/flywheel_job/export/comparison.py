"""How far an exported model differs from its source on labelled rows, and what the policy says to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Array, Floats
from flywheel_common.scoring.calibration import Platt, Temperature
from flywheel_job.evaluation.calibration import fit_platt
from flywheel_job.evaluation.metrics import EPSILON
from flywheel_job.evaluation.outputs import BinaryOutputs, MulticlassOutputs, Outputs, RegressionOutputs
from flywheel_job.export.params import ExportPolicy
from flywheel_job.model_file import BINARY, MULTICLASS


@dataclass(frozen=True)
class Differences:
    """Metrics of both models on the same rows, and how their outputs differ."""

    rows: int
    flip_share: float
    """Share of the rows with another decision; 0 for a REGRESSION model, which decides nothing."""
    largest: float
    """Largest difference of an output."""
    source: Mapping[str, float]
    exported: Mapping[str, float]

    def increase(self, metric: str) -> float:
        """How much larger a metric of the exported model is."""
        return self.exported[metric] - self.source[metric]


def fit_platt_to(target: Floats, outputs: Floats) -> Platt:
    """The Platt scaling of `outputs` that is nearest to the probabilities `target` (in cross-entropy).

    Each row counts as a positive with the weight p and a negative with the weight 1 − p, so the labels of the
    rows, and their noise, have no part in it.
    """
    labels = np.repeat([1.0, 0.0], len(target))
    return fit_platt(labels, np.tile(outputs, 2), np.concatenate([target, 1 - target]))


def fit_temperature_to(target: Floats, outputs: Floats) -> Temperature:
    """The temperature between 1/20 and 20 at which `outputs` `[rows, classes]` are nearest to the
    probabilities `target` (in cross-entropy), by golden-section search on its logarithm."""

    def loss(log: float) -> float:
        p = np.clip(Temperature(float(np.exp(log))).apply(outputs), EPSILON, None)
        return float(-(target * np.log(p)).sum(axis=1).mean())

    low, high, ratio = -np.log(20.0), np.log(20.0), (np.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return Temperature(float(np.exp((low + high) / 2)))


def compare(
    kind: str, labels: Array, source: Floats, exported: Floats, threshold: float | None
) -> Differences:
    """Compare calibrated outputs of both models; `threshold` is that of a BINARY model."""
    ones = np.ones(len(labels))
    flips = 0.0
    if kind == BINARY and threshold is not None:
        flips = float(((source >= threshold) != (exported >= threshold)).mean())
    elif kind == MULTICLASS:
        flips = float((source.argmax(axis=1) != exported.argmax(axis=1)).mean())
    return Differences(
        len(labels),
        flips,
        float(np.abs(source - exported).max()),
        _outputs(kind, labels, source, threshold).metrics(ones),
        _outputs(kind, labels, exported, threshold).metrics(ones),
    )


def _outputs(kind: str, labels: Array, outputs: Floats, threshold: float | None) -> Outputs:
    if kind == BINARY:
        return BinaryOutputs(labels, outputs, threshold)
    if kind == MULTICLASS:
        return MulticlassOutputs.of(labels, outputs)
    return RegressionOutputs(labels, outputs)


def refusals(kind: str, found: Differences, policy: ExportPolicy) -> list[str]:
    """One sentence for each bound of the policy that the exported model exceeds.

    A metric that is not defined, such as the AUC of rows of one class, exceeds nothing.
    """
    rules: list[tuple[str, float, float]] = []
    if kind in (BINARY, MULTICLASS):
        rules.append(("share of other decisions", found.flip_share, policy.max_flip_share))
        rules.append(("increase of the log-loss", found.increase("log_loss"), policy.max_log_loss_increase))
    if kind == BINARY:
        rules.append(("loss of AUC", -found.increase("auc"), policy.max_auc_loss))
    if kind not in (BINARY, MULTICLASS):
        base = found.source["rmse"]
        share = found.increase("rmse") / base if base else found.exported["rmse"]
        rules.append(("relative increase of the RMSE", share, policy.max_rmse_increase))
    return [
        f"The {name} is {value:.6g}: at most {limit:g} is allowed."
        for name, value, limit in rules
        if value > limit
    ]
