"""The Polars type of every definitions.DataType.

A timestamp is `Datetime("us", "UTC")`; naive times are UTC.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from flywheel_common import conversion
from flywheel_feature.definitions.model import DataType

TIMESTAMP: Final = pl.Datetime("us", "UTC")

_SCALARS: dict[int, pl.DataType] = {
    DataType.BOOL: pl.Boolean(),
    DataType.INT64: pl.Int64(),
    DataType.FLOAT32: pl.Float32(),
    DataType.FLOAT64: pl.Float64(),
    DataType.STRING: pl.String(),
    DataType.BYTES: pl.Binary(),
    DataType.TIMESTAMP: TIMESTAMP,
}


def polars_type(kind: int, vector_size: int = 0) -> pl.DataType:
    """The Polars type of a data type. Raises ValueError for an unknown data type."""
    declared = DataType(kind)
    if declared in _SCALARS:
        return _SCALARS[declared]
    if declared.is_list:
        return pl.List(_SCALARS[declared.element])
    return pl.Array(_SCALARS[declared.element], vector_size)


def same_kind(actual: pl.DataType, kind: int) -> bool:
    """Whether a computed column of type `actual` may be declared as `kind`; nulls fit every type."""
    if actual == pl.Null:
        return True
    declared = DataType(kind)
    if declared.is_list:
        inner = actual.inner if isinstance(actual, pl.List) else None
        return inner is not None and same_kind(inner, declared.element)  # type: ignore[arg-type]
    if declared.is_vector:
        return isinstance(actual, (pl.Array, pl.List)) and actual.inner.is_numeric()
    if declared in (DataType.FLOAT32, DataType.FLOAT64):
        return actual.is_numeric()
    if declared == DataType.INT64:
        return actual.is_integer()
    if declared == DataType.TIMESTAMP:
        return isinstance(actual, (pl.Datetime, pl.Date))
    return actual == _SCALARS[declared]


def accepts(stored: pl.DataType, kind: int) -> bool:
    """Whether a stored column may be declared as a data type; `converted` checks its values."""
    return stored.is_float() or conversion.accepts(pl.Series([], dtype=stored).to_arrow().type, kind)


def converted(frame: pl.DataFrame, column: str, kind: int, vector_size: int = 0) -> pl.Series:
    """A column as a data type, by the rules of flywheel_common.conversion; NaN becomes null.

    Raises WrongType for the first value that does not fit.
    """
    series, wanted = frame.get_column(column), polars_type(kind, vector_size)
    if series.dtype == wanted and not wanted.is_nested():
        return series.fill_nan(None) if wanted.is_float() else series
    arrow = conversion.convert(series.to_arrow(), kind, vector_size=vector_size, column=column)
    return pl.Series(column, arrow, dtype=wanted)


def converted_text(frame: pl.DataFrame, column: str, kind: int) -> pl.Series:
    """A text column (folder names of a partitioned table) parsed as a data type. Raises WrongType."""
    arrow = conversion.from_text(frame.get_column(column).to_arrow(), kind, column=column)
    return pl.Series(column, arrow, dtype=polars_type(kind))
