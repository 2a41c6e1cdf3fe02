"""Metrics of multi-class classification and regression.

`weights` are at least 0, their sum above 0; by default all are 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_job.evaluation.metrics import EPSILON

Weights = npt.NDArray[np.float64] | None


def multiclass_metrics(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[Any], weights: Weights = None
) -> dict[str, float]:
    """Accuracy, log-loss in nats, and the mean of the F1 scores of the classes that occur.

    `labels` are indices of columns of `probabilities` `[rows, classes]`.
    """
    chosen = probabilities.argmax(axis=1)
    of_label = np.clip(probabilities[np.arange(len(labels)), labels], EPSILON, 1.0)
    used = np.ones(len(labels)) if weights is None else weights
    scores = []
    for label in np.unique(labels):
        both = used[(chosen == label) & (labels == label)].sum()
        scores.append(2 * both / (used[chosen == label].sum() + used[labels == label].sum()))
    return {
        "accuracy": float(np.average(chosen == labels, weights=weights)),
        "log_loss": float(np.average(-np.log(of_label), weights=weights)),
        "macro_f1": float(np.mean(scores)),
        "rows": float(len(labels)),
    }


def regression_metrics(
    labels: npt.NDArray[np.float64], values: npt.NDArray[np.float64], weights: Weights = None
) -> dict[str, float]:
    """Root of the mean squared error, mean absolute error, and the share of the variance that is explained.

    The share is 0 if all labels are equal.
    """
    errors = values - labels
    spread = np.average((labels - np.average(labels, weights=weights)) ** 2, weights=weights)
    squared = np.average(errors**2, weights=weights)
    return {
        "rmse": float(np.sqrt(squared)),
        "mae": float(np.average(np.abs(errors), weights=weights)),
        "r2": float(1 - squared / spread) if spread else 0.0,
        "rows": float(len(labels)),
    }
