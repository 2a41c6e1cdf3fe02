"""Metrics of multi-class classification and regression.

`weights` are at least 0, their sum above 0; by default all are 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats, Ints
from flywheel_job.evaluation.outputs import MulticlassOutputs, Outputs, RegressionOutputs


def multiclass_metrics(
    labels: Ints, probabilities: npt.NDArray[Any], weights: Floats | None = None
) -> dict[str, float]:
    """The metrics of `MulticlassOutputs`, and the number of rows.

    `labels` are indices of columns of `probabilities` `[rows, classes]`.
    """
    return _metrics(MulticlassOutputs.of(labels, np.asarray(probabilities, dtype=np.float64)), weights)


def regression_metrics(labels: Floats, values: Floats, weights: Floats | None = None) -> dict[str, float]:
    """The metrics of `RegressionOutputs`, and the number of rows. `r2` is 0 if all labels are equal."""
    return _metrics(RegressionOutputs(labels, values), weights)


def _metrics(outputs: Outputs, weights: Floats | None) -> dict[str, float]:
    used = np.ones(len(outputs)) if weights is None else weights
    return outputs.metrics(used) | {"rows": float(len(outputs))}
