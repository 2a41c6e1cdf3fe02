"""Converts a training set to arrays in time order, and splits it for training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from flywheel_job.errors import TooFewEventTimes, UnusableTrainingSet
from flywheel_job.launch import LABEL, TIME, Column
from flywheel_job.signature import CATEGORICAL, Input

MAX_VOCABULARY = 200
NUMERIC = frozenset({"BOOL", "INT64", "FLOAT32", "FLOAT64", "TIMESTAMP"})
CALIBRATION_SHARE = 0.4
"""Share of the holdout (its oldest rows) for choosing the best epoch, the calibration and the threshold."""


@dataclass(frozen=True)
class Split:
    """Half-open row ranges of a table in time order: train, calibration, evaluation.

    The times are those of the first rows of calibration and evaluation, in microseconds since the epoch.
    """

    train_end: int
    calibration_end: int
    rows: int
    holdout_start_us: int
    evaluation_start_us: int

    def without_calibration(self) -> Split:
        """The same holdout, all of it for evaluation."""
        return replace(self, calibration_end=self.train_end, evaluation_start_us=self.holdout_start_us)


def in_time_order(frame: pl.DataFrame) -> pl.DataFrame:
    """The labelled rows, stably sorted by event time."""
    for needed in (LABEL, TIME):
        if needed not in frame.columns:
            raise UnusableTrainingSet(f"The training set has no column {needed!r}.")
    return frame.filter(pl.col(LABEL).is_not_null()).sort(TIME, maintain_order=True)


def split_by_time(times: pl.Series, holdout_fraction: float) -> Split:
    """Split off the newest rows as the holdout, and its oldest CALIBRATION_SHARE for calibration.

    `times` is sorted. Rows of one time are in one part, so the parts are as near to the wanted sizes as the
    borders between times permit. Raises UnusableTrainingSet if there are fewer than 10 rows, TooFewEventTimes
    if there are fewer than 3 times.
    """
    rows = len(times)
    if rows < 10:
        raise UnusableTrainingSet(f"The training set has {rows} labelled rows; at least 10 are needed.")
    borders = np.flatnonzero(np.diff(times.rle_id().to_numpy())) + 1
    if len(borders) < 2:
        raise TooFewEventTimes(
            f"The labelled rows have {len(borders) + 1} distinct event times; at least 3 are needed."
        )
    train_end = _nearest(borders[:-1], rows - round(rows * holdout_fraction))
    wanted = train_end + round((rows - train_end) * CALIBRATION_SHARE)
    calibration_end = _nearest(borders[borders > train_end], wanted)
    starts = times.gather([train_end, calibration_end]).dt.epoch("us").to_list()
    return Split(train_end, calibration_end, rows, *starts)


def _nearest(borders: npt.NDArray[np.int64], wanted: int) -> int:
    """The border nearest to `wanted`; of two, the lower one."""
    return int(borders[np.abs(borders - wanted).argmin()])


def labels_of(frame: pl.DataFrame) -> npt.NDArray[np.float32]:
    """The labels. Raises UnusableTrainingSet if one is not 0 or 1, or all are equal."""
    data_type = frame[LABEL].dtype
    if not data_type.is_numeric() and data_type != pl.Boolean:
        raise UnusableTrainingSet(f"Labels must be 0 or 1, but {LABEL!r} is of type {data_type}.")
    labels = np.array(frame[LABEL].cast(pl.Float32), dtype=np.float32)
    if not np.isin(labels, (0.0, 1.0)).all():
        raise UnusableTrainingSet("This recipe needs labels that are 0 or 1.")
    if labels.min() == labels.max():
        raise UnusableTrainingSet(f"Every label is {labels[0]:g}: labels of both classes are needed.")
    return labels


def weights_of(frame: pl.DataFrame, column: str) -> npt.NDArray[np.float64] | None:
    """The weights of the rows as shares of the largest one; None without a weight column.

    Raises UnusableTrainingSet unless all are finite numbers of at least 0, and not all are 0.
    """
    if not column:
        return None
    if column not in frame.columns:
        raise UnusableTrainingSet(f"The training set has no column {column!r}, which weight_column names.")
    values = frame[column]
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        raise UnusableTrainingSet(
            f"Weight column {column!r} is stored as {values.dtype}: weights are numbers."
        )
    weights = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if wrong.size:
        raise UnusableTrainingSet(
            f"Weight column {column!r} has the value {values[int(wrong[0])]} in a row of time "
            f"{frame[TIME][int(wrong[0])]}: weights must be finite and at least 0."
        )
    if not weights.any():
        raise UnusableTrainingSet(f"Every weight in {column!r} is 0.")
    return weights / weights.max()


def check_weights(
    weights: npt.NDArray[np.float64] | None, labels: npt.NDArray[np.float32], split: Split
) -> None:
    """Raises UnusableTrainingSet if a part has no weight, or the weight is on labels of one class."""
    if weights is None:
        return
    bounds = {"training": (0, split.train_end), "calibration": (split.train_end, split.calibration_end)}
    bounds["evaluation"] = (split.calibration_end, split.rows)
    for part, (start, end) in bounds.items():
        if not weights[start:end].any():
            raise UnusableTrainingSet(f"Every weight of the {part} rows is 0: give these rows weights.")
    used = labels[weights > 0]
    if used.min() == used.max():
        raise UnusableTrainingSet(f"Every label with a weight is {used[0]:g}: both classes need weight.")


def choose_inputs(
    columns: Sequence[Column], train: pl.DataFrame, vocabularies: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[Input, ...]:
    """The model inputs; a vocabulary is the given one, or the most frequent values of the training rows."""
    given = vocabularies or {}
    chosen = []
    for column in columns:
        if column.name not in train.columns:
            raise UnusableTrainingSet(f"The training set has no column {column.name!r}.")
        if column.data_type in NUMERIC:
            chosen.append(Input(column.name, column.data_type))
        elif column.data_type in CATEGORICAL:
            chosen.append(
                Input(
                    column.name, column.data_type, given.get(column.name) or most_frequent(train[column.name])
                )
            )
        else:
            raise UnusableTrainingSet(
                f"Feature {column.name!r} has type {column.data_type}, "
                "but this recipe supports numbers, bools and text only."
            )
    if not chosen:
        raise UnusableTrainingSet("The training set has no features.")
    return tuple(chosen)


def most_frequent(values: pl.Series, limit: int = MAX_VOCABULARY) -> tuple[str, ...]:
    """The `limit` most frequent values that are not null, in descending order of count, then by text."""
    counts = values.drop_nulls().value_counts(name="n")
    ranked = counts.sort(["n", values.name], descending=[True, False]).head(limit)
    return tuple(ranked[values.name].to_list())


def encode(
    frame: pl.DataFrame, inputs: Sequence[Input], dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[Any]:
    """The tensor INPUT `[rows, inputs]`: null numbers are NaN; unknown and null categories are -1."""
    tensor = np.empty((frame.height, len(inputs)), dtype=dtype)
    for position, one in enumerate(inputs):
        column = frame[one.name]
        if one.categorical:
            index = {value: i for i, value in enumerate(one.vocabulary)}
            encoded = (
                column.replace_strict(index, default=-1, return_dtype=pl.Int32).fill_null(-1).cast(pl.Float32)
            )
        elif one.data_type == "TIMESTAMP":
            encoded = (
                column.dt.epoch("us").cast(pl.Float64)
                if column.dtype.is_temporal()
                else column.cast(pl.Float64)
            )
            encoded = encoded.fill_null(float("nan"))
        else:
            encoded = column.cast(pl.Float64).fill_null(float("nan"))
        tensor[:, position] = encoded.to_numpy()
    return tensor
