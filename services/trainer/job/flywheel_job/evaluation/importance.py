"""Permutation importance: how much the mean loss on held-out rows increases when one feature is permuted.

Source: Breiman, Random Forests, 2001; Fisher, Rudin and Dominici, All Models are Wrong, but Many are Useful,
2019, whose model reliance is taken as a difference.
The loss is the log-loss of the model's own scores, or the squared error of a regression. Features that depend
on each other share their importance, and a feature that the model does not use has an importance of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats
from flywheel_job.evaluation.metrics import EPSILON

PREFIX = "importance{feature="
MAX_ROWS = 20_000
"""Held-out rows that are scored once per feature; of more, a random sample."""
MAX_SCORED = 4_000_000
"""Rows that are scored in all, so that a model of many features does not take hours."""

Rows = npt.NDArray[np.float32]


def importance_metrics(
    predict: Callable[[Rows], npt.NDArray[Any]],
    rows: Rows,
    labels: npt.NDArray[Any],
    weights: Floats | None,
    *,
    task: Literal["binary", "multiclass", "regression"],
    names: Sequence[str],
    seed: int,
) -> Mapping[str, float]:
    """`importance{feature=NAME}` of each column of rows `[rows, features]`.

    `predict` gives scores `[rows, outputs]`; `labels` and `weights` are those of the rows. It is empty if an
    importance is not finite. Equal arguments give equal values.
    """
    rng = np.random.default_rng(seed)
    limit = min(MAX_ROWS, max(1, MAX_SCORED // max(1, len(names))))
    if len(rows) > limit:
        sample = np.sort(rng.choice(len(rows), limit, replace=False))
        rows, labels = rows[sample], labels[sample]
        weights = None if weights is None else weights[sample]
    if weights is not None and not weights.any():
        return {}
    whole = _loss(task, labels, predict(rows), weights)
    permuted, found = rows.copy(), {}
    for column, name in enumerate(names):
        permuted[:, column] = rng.permutation(rows[:, column])
        found[f"{PREFIX}{name}}}"] = _loss(task, labels, predict(permuted), weights) - whole
        permuted[:, column] = rows[:, column]
    return found if np.isfinite(list(found.values())).all() else {}


def importances_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The importances among the metrics of a report, which are no metrics of its run."""
    found = {name: float(value) for name, value in metrics.items() if name.startswith(PREFIX)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _loss(task: str, labels: npt.NDArray[Any], scores: npt.NDArray[Any], weights: Floats | None) -> float:
    """The mean loss of scores `[rows, outputs]`."""
    s = scores.astype(np.float64)
    if task == "regression":
        losses = (s[:, 0] - labels) ** 2
    else:
        of_label = (
            s[np.arange(len(s)), labels.astype(np.int64)]
            if task == "multiclass"
            else np.where(labels == 1, s[:, 0], 1 - s[:, 0])
        )
        losses = -np.log(np.clip(of_label, EPSILON, 1 - EPSILON))
    return float(np.average(losses, weights=weights))
