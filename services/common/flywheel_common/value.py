"""Conversion between `types.v1.Value` and None, bool, int, float, str, bytes, datetime (UTC), list."""

from __future__ import annotations

import ctypes
from datetime import UTC, datetime, timedelta
from math import isinf, isnan
from typing import Any

import numpy as np

from flywheel_common.columns import ELEMENT_OF, VECTORS, element_of
from flywheel_common.errors import InvalidValue, WrongType
from flywheel_protos.types.v1 import value_pb2

Value = value_pb2.Value
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EXACT_FLOAT_INTEGERS = 2**53
"""Whole floats below this size are accepted as integers; larger ones may have been rounded before."""


def to_python(value: Value) -> Any:
    """The Python value; None when no kind is set, timestamps as UTC datetimes."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "timestamp_value":
        return value.timestamp_value.ToDatetime(tzinfo=UTC)
    if kind == "list_value":
        return [to_python(v) for v in value.list_value.values]
    return getattr(value, kind)


def from_python(value: Any) -> Value:
    """The Value of a Python or numpy value. Raises InvalidValue for other types."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    match value:
        case None:
            return Value()
        case bool():
            return Value(bool_value=value)
        case int():
            return Value(int64_value=value)
        case float():
            return Value(double_value=value)
        case str():
            return Value(string_value=value)
        case bytes():
            return Value(bytes_value=value)
        case datetime():
            result = Value()
            result.timestamp_value.FromDatetime(as_utc(value))
            return result
        case list() | tuple():
            return Value(list_value=value_pb2.ValueList(values=[from_python(v) for v in value]))
    raise InvalidValue(f"A {type(value).__name__} is not a feature value.")


def as_utc(moment: datetime) -> datetime:
    """The moment in UTC; a naive datetime is UTC, whatever the time zone of the machine."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def micros(moment: datetime) -> int:
    """Microseconds since 1970 UTC; a naive datetime is UTC."""
    delta = as_utc(moment) - EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_micros(time: int) -> datetime:
    """The UTC datetime of microseconds since 1970 UTC; the inverse of `micros`.

    Raises OverflowError outside of the years 1 to 9999.
    """
    return EPOCH + timedelta(microseconds=time)


def coerce(value: Value, data_type: int, field: str) -> Any:
    """The value as its declared type: TIMESTAMP as int microseconds, lists and vectors as lists, null as
    None.

    The rules are those of flywheel_common.conversion, and RFC 3339 text is a TIMESTAMP. A value that does not
    fit raises WrongType, as do null and NaN inside a list, and a vector
    without elements.
    """
    plain = to_python(value)
    if plain is None:
        return None
    if data_type in ELEMENT_OF or data_type in VECTORS:
        if not isinstance(plain, list) or (data_type in VECTORS and not plain):
            raise _wrong(field, data_type, plain)
        return [_scalar(v, element_of(data_type), field) for v in plain]
    if isinstance(plain, float) and isnan(plain):
        return None
    return _scalar(plain, data_type, field)


def nearest_float32(number: float) -> float:
    """The nearest float of 32 bits; infinite above their range."""
    return ctypes.c_float(number).value


def _scalar(plain: Any, data_type: int, field: str) -> Any:
    match data_type, plain:
        case value_pb2.DATA_TYPE_BOOL, bool():
            return plain
        case value_pb2.DATA_TYPE_STRING, str():
            return plain
        case value_pb2.DATA_TYPE_BYTES, bytes():
            return plain
        case value_pb2.DATA_TYPE_TIMESTAMP, datetime():
            return micros(plain)
        case value_pb2.DATA_TYPE_TIMESTAMP, str():
            try:
                return micros(datetime.fromisoformat(plain))
            except ValueError:
                raise _wrong(field, data_type, plain) from None
        case _, int() | float() if not isinstance(plain, bool):
            number = _number(plain, data_type)
            if number is not None:
                return number
    raise _wrong(field, data_type, plain)


def _number(plain: int | float, data_type: int) -> int | float | None:
    """The number as its declared type; None where it does not fit."""
    match data_type, plain:
        case value_pb2.DATA_TYPE_INT64, int():
            return plain
        case value_pb2.DATA_TYPE_INT64, float() if plain.is_integer() and abs(plain) < EXACT_FLOAT_INTEGERS:
            return int(plain)
        case value_pb2.DATA_TYPE_FLOAT64, float() if not isnan(plain):
            return plain
        case value_pb2.DATA_TYPE_FLOAT64, int() if int(float(plain)) == plain:
            return float(plain)
        case value_pb2.DATA_TYPE_FLOAT32, float() if not isnan(plain):
            single = nearest_float32(plain)
            return single if isinf(single) == isinf(plain) else None
        case value_pb2.DATA_TYPE_FLOAT32, int() if int(nearest_float32(plain)) == plain:
            return nearest_float32(plain)
    return None


def _wrong(field: str, data_type: int, plain: Any) -> WrongType:
    expected = value_pb2.DataType.Name(data_type).removeprefix("DATA_TYPE_")
    return WrongType(
        f"{field} is a {type(plain).__name__} where {expected} is declared.",
        field=field,
        expected=expected,
    )
