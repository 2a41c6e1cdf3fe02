"""Data types of features and fields, and durations such as `5m`, `24h` and `7d`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Self

from flywheel_protos.types.v1 import value_pb2

BOOL = value_pb2.DATA_TYPE_BOOL
INT64 = value_pb2.DATA_TYPE_INT64
FLOAT32 = value_pb2.DATA_TYPE_FLOAT32
FLOAT64 = value_pb2.DATA_TYPE_FLOAT64
STRING = value_pb2.DATA_TYPE_STRING
BYTES = value_pb2.DATA_TYPE_BYTES
TIMESTAMP = value_pb2.DATA_TYPE_TIMESTAMP
BOOL_LIST = value_pb2.DATA_TYPE_BOOL_LIST
INT64_LIST = value_pb2.DATA_TYPE_INT64_LIST
FLOAT32_LIST = value_pb2.DATA_TYPE_FLOAT32_LIST
FLOAT64_LIST = value_pb2.DATA_TYPE_FLOAT64_LIST
STRING_LIST = value_pb2.DATA_TYPE_STRING_LIST
TIMESTAMP_LIST = value_pb2.DATA_TYPE_TIMESTAMP_LIST

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Vector(int):
    """The data type of vectors of a fixed size, made by `vector`."""

    size: int

    def __new__(cls, kind: int, size: int) -> Self:
        made = super().__new__(cls, kind)
        made.size = size
        return made


def vector(size: int, element: int = FLOAT32) -> Vector:
    """The type of vectors of `size` FLOAT32 or FLOAT64 numbers. Raises ValueError."""
    kinds = {
        FLOAT32: value_pb2.DATA_TYPE_FLOAT32_VECTOR,
        FLOAT64: value_pb2.DATA_TYPE_FLOAT64_VECTOR,
    }
    if size < 1 or element not in kinds:
        raise ValueError("a vector has 1 or more elements, FLOAT32 or FLOAT64")
    return Vector(kinds[element], size)  # type: ignore[index]


def vector_size(kind: int) -> int:
    """The number of elements of a vector type; 0 for other types."""
    return kind.size if isinstance(kind, Vector) else 0


def duration(text: str | timedelta) -> timedelta:
    """`90s`, `5m`, `24h` or `7d` as a timedelta. Raises ValueError."""
    if isinstance(text, timedelta):
        return text
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if found is None:
        raise ValueError(f"{text!r} is not a duration: write a whole number and s, m, h or d, such as '24h'")
    return timedelta(seconds=int(found[1]) * UNITS[found[2]])


def fields(schema: Mapping[str, int]) -> list[value_pb2.Field]:
    """name → data type as schema fields, in order."""
    return [
        value_pb2.Field(
            name=name,
            data_type=int(kind),  # type: ignore[arg-type]
            vector_size=vector_size(kind),
        )
        for name, kind in schema.items()
    ]
