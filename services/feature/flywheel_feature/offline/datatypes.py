"""How flywheel.types.v1.DataType looks in a frame. Data types are passed as their numbers: no protobuf here.

Every timestamp in a frame is `Datetime("us", "UTC")`; naive ones that come in are taken as UTC.
"""

from __future__ import annotations

from typing import Final

import polars as pl

BOOL: Final = 1
INT64: Final = 2
FLOAT32: Final = 3
FLOAT64: Final = 4
STRING: Final = 5
BYTES: Final = 6
TIMESTAMP_TYPE: Final = 7
LIST_OFFSET: Final = 11
"""A list's number is its element's plus this (12 BOOL_LIST … 16 STRING_LIST)."""
TIMESTAMP_LIST: Final = 17
FLOAT32_VECTOR: Final = 24
FLOAT64_VECTOR: Final = 25

TIMESTAMP: Final = pl.Datetime("us", "UTC")

_SCALARS: dict[int, pl.DataType] = {
    BOOL: pl.Boolean(),
    INT64: pl.Int64(),
    FLOAT32: pl.Float32(),
    FLOAT64: pl.Float64(),
    STRING: pl.String(),
    BYTES: pl.Binary(),
    TIMESTAMP_TYPE: TIMESTAMP,
}
_ELEMENTS: dict[int, int] = {12: BOOL, 13: INT64, 14: FLOAT32, 15: FLOAT64, 16: STRING, 17: TIMESTAMP_TYPE}
NUMERIC: Final = frozenset({INT64, FLOAT32, FLOAT64})


def polars_type(kind: int, vector_size: int = 0) -> pl.DataType:
    """The frame type of a data type. Raises ValueError for one that does not exist."""
    kind = int(kind)
    if kind in _SCALARS:
        return _SCALARS[kind]
    if kind in _ELEMENTS:
        return pl.List(_SCALARS[_ELEMENTS[kind]])
    if kind == FLOAT32_VECTOR:
        return pl.Array(pl.Float32(), vector_size)
    if kind == FLOAT64_VECTOR:
        return pl.Array(pl.Float64(), vector_size)
    raise ValueError(f"data type {kind} does not exist")


def data_type(dtype: pl.DataType) -> int:
    """The data type that a frame column is stored as. Raises ValueError when none fits."""
    for kind, known in _SCALARS.items():
        if dtype == known:
            return kind
    if dtype.is_integer():
        return INT64
    if isinstance(dtype, (pl.Datetime, pl.Date)):
        return TIMESTAMP_TYPE
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        return STRING
    if isinstance(dtype, pl.Decimal):
        return FLOAT64
    if isinstance(dtype, pl.List):
        inner = data_type(dtype.inner)  # type: ignore[arg-type]
        for kind, element in _ELEMENTS.items():
            if element == inner:
                return kind
    if isinstance(dtype, pl.Array):
        return FLOAT32_VECTOR if dtype.inner == pl.Float32 else FLOAT64_VECTOR
    raise ValueError(f"a column of type {dtype} fits no data type")


def same_kind(actual: pl.DataType, kind: int) -> bool:
    """Whether a result of type `actual` may stand for `kind` without surprise."""
    if actual == pl.Null:
        return True
    kind = int(kind)
    if kind in (FLOAT32, FLOAT64):
        return actual.is_numeric()
    if kind == INT64:
        return actual.is_integer()
    if kind == TIMESTAMP_TYPE:
        return isinstance(actual, (pl.Datetime, pl.Date))
    if kind in _ELEMENTS:
        return isinstance(actual, pl.List) and same_kind(actual.inner, _ELEMENTS[kind])  # type: ignore[arg-type]
    if kind in (FLOAT32_VECTOR, FLOAT64_VECTOR):
        return isinstance(actual, (pl.Array, pl.List)) and actual.inner.is_numeric()  # type: ignore[union-attr]
    return actual == _SCALARS[kind]


def to_type(expr: pl.Expr, actual: pl.DataType, kind: int, vector_size: int = 0) -> pl.Expr:
    """`expr` cast to a data type; naive timestamps become UTC. Values that do not fit raise when the frame is computed."""
    wanted = polars_type(kind, vector_size)
    if actual == wanted:
        return expr
    if wanted == TIMESTAMP and isinstance(actual, pl.Date):
        return expr.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if wanted == TIMESTAMP and isinstance(actual, pl.Datetime) and actual.time_zone is None:
        return expr.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return expr.cast(wanted, strict=True)
