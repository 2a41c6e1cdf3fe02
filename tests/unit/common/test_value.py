"""Conversion of values to Python and to their declared type."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from flywheel_common.errors import InvalidArgument
from flywheel_common.value import coerce, from_micros, from_python, micros, to_python
from flywheel_protos.types.v1 import value_pb2


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**63), 1.5, "", "ä", b"\x00", datetime(2013, 1, 1, tzinfo=UTC), [1, "a", [None, 2.0]]],
)
def test_values_round_trip_with_their_type(value: Any) -> None:
    back = to_python(from_python(value))
    assert back == value
    assert type(back) is type(value)


def test_numpy_scalars_and_arrays_are_values() -> None:
    assert to_python(from_python(np.float32(0.5))) == 0.5
    assert to_python(from_python(np.array([1, 2]))) == [1, 2]


def test_other_python_types_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        from_python(object())


MICROS = 1_356_998_400_000_000  # 2013-01-01T00:00:00Z


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, value_pb2.DATA_TYPE_FLOAT64, 3.0),
        (3.0, value_pb2.DATA_TYPE_INT64, 3),
        (None, value_pb2.DATA_TYPE_INT64, None),
        ("2013-01-01T00:00:00Z", value_pb2.DATA_TYPE_TIMESTAMP, MICROS),
        ("2013-01-01T02:00:00+02:00", value_pb2.DATA_TYPE_TIMESTAMP, MICROS),
        (datetime(2013, 1, 1, tzinfo=UTC), value_pb2.DATA_TYPE_TIMESTAMP, MICROS),
        ([1, 2], value_pb2.DATA_TYPE_FLOAT32_VECTOR, [1.0, 2.0]),
        (["a"], value_pb2.DATA_TYPE_STRING_LIST, ["a"]),
    ],
)
def test_values_widen_to_the_declared_type(value: Any, kind: int, expected: Any) -> None:
    assert coerce(from_python(value), kind, "f") == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("3", value_pb2.DATA_TYPE_INT64),
        (3.5, value_pb2.DATA_TYPE_INT64),
        (True, value_pb2.DATA_TYPE_INT64),
        (True, value_pb2.DATA_TYPE_FLOAT64),
        (1, value_pb2.DATA_TYPE_BOOL),
        (1, value_pb2.DATA_TYPE_STRING),
        ("yesterday", value_pb2.DATA_TYPE_TIMESTAMP),
        (1.0, value_pb2.DATA_TYPE_FLOAT64_LIST),
        (1700000000, value_pb2.DATA_TYPE_TIMESTAMP),
        (2**53 + 1, value_pb2.DATA_TYPE_FLOAT64),
        ([1.0, float("nan")], value_pb2.DATA_TYPE_FLOAT64_LIST),
        (float("inf"), value_pb2.DATA_TYPE_INT64),
    ],
)
def test_wrong_types_are_refused_with_the_field(value: Any, kind: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        coerce(from_python(value), kind, "dep_delay")
    assert caught.value.reason == "WRONG_TYPE"
    assert "dep_delay" in caught.value.message


def test_micros_are_exact_in_any_zone() -> None:
    assert micros(datetime(2013, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))) == MICROS
    assert micros(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1


@pytest.mark.parametrize("time", [0, -1, MICROS + 1, micros(datetime.min), micros(datetime.max)])
def test_a_datetime_of_micros_is_exact(time: int) -> None:
    moment = from_micros(time)
    assert (UTC, time) == (moment.tzinfo, micros(moment))


def test_a_datetime_of_micros_has_the_zone_utc() -> None:
    assert datetime(2013, 1, 1, 0, 0, 0, 1, UTC) == from_micros(MICROS + 1)


def test_micros_beyond_the_years_of_a_datetime_are_refused() -> None:
    with pytest.raises(OverflowError):
        from_micros(micros(datetime.max) + 1)


@pytest.mark.parametrize("kind", [value_pb2.DATA_TYPE_FLOAT64, value_pb2.DATA_TYPE_INT64])
def test_nan_is_null(kind: int) -> None:
    assert coerce(from_python(float("nan")), kind, "x") is None


def test_naive_datetimes_are_utc_in_every_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert micros(datetime(2013, 1, 1)) == MICROS
        assert to_python(from_python(datetime(2013, 1, 1))) == datetime(2013, 1, 1, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()
