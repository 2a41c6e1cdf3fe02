"""Labels and weights of rows, checked against the kind of a model's output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from flywheel_common.arrays import Array, Floats
from flywheel_job.errors import UnusableEvaluationSet
from flywheel_job.model_file import BINARY, MULTICLASS


def labels_for(values: pl.Series, kind: str, classes: Sequence[str]) -> Array:
    """BINARY: 0.0 or 1.0. MULTICLASS: the index of the class, of a name or a whole number. REGRESSION: the
    number.

    Raises UnusableEvaluationSet naming the value.
    """
    if kind == MULTICLASS and values.dtype == pl.String:
        index = {name: number for number, name in enumerate(classes)}
        found = values.replace_strict(index, default=-1, return_dtype=pl.Int64).to_numpy()
        _refuse(found < 0, values, f"one of the classes {', '.join(classes)[:200]}")
        return np.asarray(found, dtype=np.int64)
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        raise UnusableEvaluationSet(
            f"Column {values.name!r} is {values.dtype}, but labels of a {kind} model are numbers."
        )
    numbers = values.cast(pl.Float64).to_numpy()
    if kind == BINARY:
        _refuse(~np.isin(numbers, (0.0, 1.0)), values, "0 or 1, as the output is BINARY")
    elif kind == MULTICLASS:
        fits = (numbers >= 0) & (numbers < len(classes)) & (numbers == np.floor(numbers))
        _refuse(~fits, values, f"a whole number below {len(classes)}, the number of classes")
        return np.asarray(numbers, dtype=np.int64)
    else:
        _refuse(~np.isfinite(numbers), values, "finite, as the output is REGRESSION")
    return np.array(numbers)


def weights_for(values: pl.Series) -> Floats:
    """Weights of rows. Raises UnusableEvaluationSet unless they are finite numbers of at least 0."""
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        raise UnusableEvaluationSet(f"Column {values.name!r} is {values.dtype}, but weights are numbers.")
    numbers = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    _refuse(~(np.isfinite(numbers) & (numbers >= 0)), values, "a finite number of at least 0")
    return np.array(numbers)


def _refuse(wrong: Array, values: pl.Series, rule: str) -> None:
    found = np.flatnonzero(wrong)
    if found.size:
        raise UnusableEvaluationSet(
            f"Column {values.name!r} has the value {str(values[int(found[0])])[:100]!r}: it must be {rule}."
        )
