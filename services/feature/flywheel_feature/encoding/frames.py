"""Conversion between columns as arrays (values and validity mask) and Polars frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from flywheel_common.arrays import Array, Mask
from flywheel_feature.definitions.frame_types import polars_type
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.encoding.row_encoding import DTYPES

Columns = dict[str, tuple[Array, Mask]]
"""Name → (values, mask of rows that are not null)."""


def take_rows(columns: Columns, rows: npt.NDArray[Any]) -> Columns:
    """The columns at `rows` (places or a mask)."""
    return {name: (values[rows], valid[rows]) for name, (values, valid) in columns.items()}


def nan_to_null(values: Array, valid: Mask) -> tuple[Array, Mask]:
    """The values with 0 for NaN, and the mask without these rows. Values: [n] floats."""
    nan = np.isnan(values)
    if not nan.any():
        return values, valid
    return np.where(nan, values.dtype.type(0), values), valid & ~nan


_PLAIN = frozenset({DataType.BOOL, DataType.INT64, DataType.FLOAT32, DataType.FLOAT64})
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
    if valid.all():
        series = pl.Series(field.name, values)
    else:
        # Through Arrow: setting nulls with Polars plans and runs a query.
        masked = pl.from_arrow(pa.array(values, mask=~valid))
        assert isinstance(masked, pl.Series)
        series = masked.rename(field.name)
    if field.data_type == DataType.TIMESTAMP:
        return series.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return series if series.dtype == dtype else series.cast(dtype)


def from_series(series: pl.Series, data_type: DataType) -> tuple[Array, Mask]:
    """Values (0 or empty where null) and the mask of rows that are not null. NaN counts as null."""
    if data_type == DataType.TIMESTAMP:
        series = series.dt.epoch("us") if isinstance(series.dtype, pl.Datetime) else series
    if data_type == DataType.TIMESTAMP_LIST and series.dtype != pl.List(pl.Int64):
        series = series.list.eval(pl.element().dt.epoch("us"))
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
    if data_type in DTYPES and data_type != DataType.BOOL and series.dtype == polars_type(int(data_type)):
        return _numbers(series, data_type)
    not_null = series.is_not_null()
    if data_type in _FLOATS:
        not_null = not_null & series.is_not_nan().fill_null(False)
    mask: Mask = not_null.to_numpy()
    if series.null_count():
        series = series.fill_null(False if data_type == DataType.BOOL else 0)
    numbers: Array = series.to_numpy().astype(DTYPES[data_type], copy=False)
    return (numbers if mask.all() else np.where(mask, numbers, numbers.dtype.type(0))), mask


def _numbers(series: pl.Series, data_type: DataType) -> tuple[Array, Mask]:
    """As `from_series`, for fixed-width numbers, read directly from the buffers."""
    dtype, rows = DTYPES[data_type], len(series)
    if series.null_count() == 0:
        values: Array = series.to_numpy()
        mask: Mask = ~np.isnan(values) if data_type in _FLOATS else np.ones(rows, np.bool_)
    else:
        array = series.to_arrow()
        bits, data = array.buffers()
        start = array.offset
        mask = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[start : start + rows].astype(
            np.bool_
        )
        values = np.frombuffer(data, dtype)[start : start + rows]
        if data_type in _FLOATS:
            mask = mask & ~np.isnan(values)
    return (values if mask.all() else np.where(mask, values, dtype.type(0))), mask


def to_frame(fields: list[Field], columns: Columns, rows: int) -> pl.DataFrame:
    """A frame of these fields, in order."""
    if not fields:
        return pl.DataFrame(height=rows)
    if all(f.data_type in _PLAIN and columns[f.name][0].dtype == DTYPES[f.data_type] for f in fields):
        # In one step: for a few rows, building each series takes as long as evaluating the expressions.
        arrays = [pa.array(v, mask=None if m.all() else ~m) for v, m in (columns[f.name] for f in fields)]
        return pl.DataFrame(pa.RecordBatch.from_arrays(arrays, names=[f.name for f in fields]))
    return pl.DataFrame([to_series(f, *columns[f.name]) for f in fields])
