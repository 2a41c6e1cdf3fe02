"""The Polars type of every definitions.DataType.

A timestamp is `Datetime("us", "UTC")`; naive times are UTC.
"""

from __future__ import annotations

from typing import Final

import polars as pl

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


def fits(actual: pl.DataType, kind: int) -> bool:
    """Whether a stored column may be read as a data type: as `same_kind`, or stored in a wider type."""
    if same_kind(actual, kind):
        return True
    declared = DataType(kind)
    if declared == DataType.STRING:
        return isinstance(actual, (pl.Categorical, pl.Enum))
    if declared in (DataType.FLOAT32, DataType.FLOAT64):
        return isinstance(actual, pl.Decimal)
    # pandas writes integer columns that contain nulls as floats.
    return declared == DataType.INT64 and actual.is_float()


def to_type(column: str, actual: pl.DataType, kind: int, vector_size: int = 0) -> pl.Expr:
    """A column cast to a data type; NaN becomes null, as in the online store.

    A value that does not fit raises when the frame is computed.
    """
    expr, wanted = pl.col(column), polars_type(kind, vector_size)
    if actual.is_float() and (wanted.is_float() or wanted == pl.Int64):
        expr = expr.fill_nan(None)
    if actual == wanted:
        return expr
    if wanted == TIMESTAMP and getattr(actual, "time_zone", None) is None:
        return expr.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return expr.cast(wanted)


def from_text(column: str, kind: int) -> pl.Expr:
    """A text column (folder names of a partitioned table) parsed as a data type.

    A text that does not parse raises when the frame is computed.
    """
    expr, declared = pl.col(column), DataType(kind)
    if declared == DataType.BOOL:
        return expr.str.to_lowercase().replace_strict({"true": True, "false": False}, return_dtype=pl.Boolean)
    if declared == DataType.TIMESTAMP:
        return expr.str.to_datetime(time_unit="us", time_zone="UTC")
    return expr.cast(polars_type(kind))
