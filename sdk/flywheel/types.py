"""Data types of features and fields, and durations written the way people say them (`5m`, `24h`, `7d`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

from flywheel_protos.types.v1 import value_pb2

BOOL = value_pb2.DATA_TYPE_BOOL
INT64 = value_pb2.DATA_TYPE_INT64
FLOAT32 = value_pb2.DATA_TYPE_FLOAT32
FLOAT64 = value_pb2.DATA_TYPE_FLOAT64
STRING = value_pb2.DATA_TYPE_STRING
BYTES = value_pb2.DATA_TYPE_BYTES
TIMESTAMP = value_pb2.DATA_TYPE_TIMESTAMP
FLOAT64_LIST = value_pb2.DATA_TYPE_FLOAT64_LIST
STRING_LIST = value_pb2.DATA_TYPE_STRING_LIST

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration(text: str | timedelta) -> timedelta:
    """`90s`, `5m`, `24h` or `7d` as a timedelta. Raises ValueError that names the form."""
    if isinstance(text, timedelta):
        return text
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if found is None:
        raise ValueError(f"{text!r} is no duration: write a whole number and s, m, h or d, such as '24h'")
    return timedelta(seconds=int(found[1]) * UNITS[found[2]])


def fields(schema: Mapping[str, int]) -> list[value_pb2.Field]:
    """name → data type as schema fields, in order."""
    return [value_pb2.Field(name=name, data_type=kind) for name, kind in schema.items()]  # type: ignore[arg-type]
