"""The labels of a task."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from flywheel_job.errors import UnusableTrainingSet
from flywheel_job.launch import LABEL
from flywheel_job.recipes.dataset import labels_of
from flywheel_job.recipes.tasks import Task

MAX_CLASSES = 1000


def task_labels(frame: pl.DataFrame, task: Task) -> npt.NDArray[Any]:
    """The labels of all rows. Raises UnusableTrainingSet for labels that do not fit the task."""
    if task == "binary":
        return labels_of(frame)
    if not frame[LABEL].dtype.is_numeric():
        raise UnusableTrainingSet(f"Labels must be numbers, but {LABEL!r} is of type {frame[LABEL].dtype}.")
    values = frame[LABEL].cast(pl.Float64).to_numpy()
    if not np.isfinite(values).all():
        raise UnusableTrainingSet("Every label must be finite.")
    if task == "regression":
        return values
    if (values != np.floor(values)).any() or values.min() < 0 or values.max() >= MAX_CLASSES:
        raise UnusableTrainingSet(f"Labels of classes must be whole numbers from 0 to {MAX_CLASSES - 1}.")
    return values.astype(np.int64)


def outputs_of(task: Task, labels: npt.NDArray[Any], train_end: int) -> int:
    """The number of classes, or 1. Raises UnusableTrainingSet for a class without training rows."""
    if task != "multiclass":
        return 1
    outputs = int(labels.max()) + 1
    if outputs < 2 or len(np.unique(labels[:train_end])) != outputs:
        raise UnusableTrainingSet(f"The training rows must have every label from 0 to {max(1, outputs - 1)}.")
    return outputs
