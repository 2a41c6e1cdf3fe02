"""Columns as arrays (values and a mask of those present) to Polars and back: expressions run on frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from flywheel_feature.definitions import DataType, Field
from flywheel_feature.offline.datatypes import polars_type
from flywheel_feature.row_encoding import DTYPES

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Columns = dict[str, tuple[Array, Mask]]

_FLOATS = frozenset({DataType.FLOAT32, DataType.FLOAT64})


def to_series(field: Field, values: Array, valid: Mask) -> pl.Series:
    """[n] values of a field; rows that are not valid become null."""
    dtype = polars_type(int(field.data_type), field.vector_size)
    if values.dtype == object or values.ndim > 1:
        rows = [
            (v.tolist() if isinstance(v, np.ndarray) else v) if ok else None
            for v, ok in zip(values, valid, strict=True)
        ]
        if field.data_type.element == DataType.TIMESTAMP:
            return pl.Series(field.name, rows, dtype=pl.List(pl.Int64)).cast(dtype)
        return pl.Series(field.name, rows, dtype=dtype)
    series = pl.Series(field.name, values)
    if not valid.all():
        series = series.set(pl.Series(~valid), None)
    if field.data_type == DataType.TIMESTAMP:
        return series.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return series if series.dtype == dtype else series.cast(dtype)


def from_series(series: pl.Series, data_type: DataType) -> tuple[Array, Mask]:
    """Values (0 or empty where null) and the mask of those present. NaN counts as null."""
    if data_type == DataType.TIMESTAMP:
        series = series.dt.epoch("us") if isinstance(series.dtype, pl.Datetime) else series
    if data_type.is_vector:
        present = series.is_not_null().to_numpy()
        size = series.dtype.size if isinstance(series.dtype, pl.Array) else 0
        filled = np.zeros((len(series), size), DTYPES[data_type.element])
        if present.any():
            filled[present] = np.array(series.drop_nulls().to_list(), DTYPES[data_type.element])
        return filled, present
    if data_type.is_list or data_type in (DataType.STRING, DataType.BYTES):
        present = series.is_not_null().to_numpy()
        empty: Any = "" if data_type == DataType.STRING else b"" if data_type == DataType.BYTES else []
        values = np.empty(len(series), dtype=object)
        for i, v in enumerate(series.to_list()):
            values[i] = empty if v is None else v
        return values, present
    there = series.is_not_null()
    if data_type in _FLOATS:
        there = there & series.is_not_nan().fill_null(False)
    mask: Mask = there.to_numpy()
    if series.null_count():
        series = series.fill_null(False if data_type == DataType.BOOL else 0)
    numbers: Array = series.to_numpy().astype(DTYPES[data_type], copy=False)
    return (numbers if mask.all() else np.where(mask, numbers, numbers.dtype.type(0))), mask


def to_frame(fields: list[Field], columns: Columns, rows: int) -> pl.DataFrame:
    """A frame of these fields, in order."""
    if not fields:
        return pl.DataFrame(height=rows)
    return pl.DataFrame([to_series(f, *columns[f.name]) for f in fields])
