"""Conversion of Arrow columns to declared data types, cell by cell and by property."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.conversion import (
    ARROW_TYPES,
    BOOL,
    BYTES,
    FLOAT32,
    FLOAT64,
    INT64,
    STRING,
    TIMESTAMP,
    accepts,
    arrow_type,
    convert,
    data_type_of,
    from_text,
)
from flywheel_common.errors import WrongType
from flywheel_protos.types.v1 import value_pb2

NAN = float("nan")
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
NOON_MICROS = 1_714_564_800_000_000  # date -u -d 2024-05-01T12:00:00Z +%s, times 10^6

SCALARS: dict[str, tuple[pa.Array, dict[int, Any]]] = {
    "bool": (pa.array([True]), {BOOL: True}),
    "int8": (pa.array([7], pa.int8()), {INT64: 7, FLOAT32: 7.0, FLOAT64: 7.0}),
    "int64": (pa.array([7]), {INT64: 7, FLOAT32: 7.0, FLOAT64: 7.0}),
    "uint8": (pa.array([7], pa.uint8()), {INT64: 7, FLOAT32: 7.0, FLOAT64: 7.0}),
    "uint64": (pa.array([7], pa.uint64()), {INT64: 7, FLOAT32: 7.0, FLOAT64: 7.0}),
    "halffloat": (pa.array([2.5], pa.float16()), {FLOAT32: 2.5, FLOAT64: 2.5}),
    "float": (pa.array([2.5], pa.float32()), {FLOAT32: 2.5, FLOAT64: 2.5}),
    "double": (pa.array([2.5]), {FLOAT32: 2.5, FLOAT64: 2.5}),
    "whole double": (pa.array([2.0]), {INT64: 2, FLOAT32: 2.0, FLOAT64: 2.0}),
    "decimal128(38, 0)": (
        pa.array([Decimal(7)], pa.decimal128(38, 0)),
        {INT64: 7, FLOAT32: 7.0, FLOAT64: 7.0},
    ),
    "decimal128": (
        pa.array([Decimal("12.99")]),
        {FLOAT32: float(np.float32(12.99)), FLOAT64: 12.99},
    ),
    "decimal256": (pa.array([Decimal("1.5")], pa.decimal256(60, 3)), {FLOAT32: 1.5, FLOAT64: 1.5}),
    "string": (pa.array(["01"]), {STRING: "01"}),
    "large_string": (pa.array(["01"], pa.large_string()), {STRING: "01"}),
    "string_view": (pa.array(["01"], pa.string_view()), {STRING: "01"}),
    "dictionary": (pa.array(["01"]).dictionary_encode(), {STRING: "01"}),
    "binary": (pa.array([b"\x01"]), {BYTES: b"\x01"}),
    "fixed_size_binary": (pa.array([b"\x01\x02"], pa.binary(2)), {BYTES: b"\x01\x02"}),
    "binary_view": (pa.array([b"\x01"], pa.binary_view()), {BYTES: b"\x01"}),
    "naive timestamp": (pa.array([NOON.replace(tzinfo=None)]), {TIMESTAMP: NOON}),
    "timestamp[s]": (pa.array([NOON_MICROS // 10**6], pa.timestamp("s", "UTC")), {TIMESTAMP: NOON}),
    "timestamp[ns]": (pa.array([NOON_MICROS * 1000 + 999], pa.timestamp("ns")), {TIMESTAMP: NOON}),
    "zoned timestamp": (pa.array([NOON_MICROS], pa.timestamp("us", "America/New_York")), {TIMESTAMP: NOON}),
    "date32": (pa.array([date(2024, 5, 1)]), {TIMESTAMP: datetime(2024, 5, 1, tzinfo=UTC)}),
    "time64": (pa.array([1], pa.time64("us")), {}),
    "duration": (pa.array([1], pa.duration("us")), {}),
    "struct": (pa.array([{"a": 1}]), {}),
    "list": (pa.array([[1]]), {}),
}


@pytest.mark.parametrize("declared", list(ARROW_TYPES))
@pytest.mark.parametrize("stored", list(SCALARS))
def test_a_value_arrives_exactly_or_is_refused(stored: str, declared: int) -> None:
    array, expected = SCALARS[stored]
    rows = pa.concat_arrays([pa.nulls(1, array.type), array])
    if declared in expected:
        found = convert(rows, declared, column="c")
        assert found.type == ARROW_TYPES[declared]
        assert found.to_pylist() == [None, expected[declared]]
        assert accepts(array.type, declared)
        return
    with pytest.raises(WrongType) as raised:
        convert(rows, declared, column="c")
    assert raised.value.metadata["column"] == "c"
    assert raised.value.metadata["row"] == "1"


@pytest.mark.parametrize(
    ("array", "declared"),
    [
        (pa.array([1.0, 2.7]), INT64),
        (pa.array([1.0, 1e30]), INT64),
        (pa.array([1.0, 2.0**53]), INT64),
        (pa.array([1.0, float("inf")]), INT64),
        (pa.array([1, 2**63], pa.uint64()), INT64),
        (pa.array([Decimal("1.0"), Decimal("1.5")]), INT64),
        (pa.array([Decimal(1), Decimal(2**63)], pa.decimal128(38, 0)), INT64),
        (pa.array([1, 2**53 + 1]), FLOAT64),
        (pa.array([1, 2**24 + 1]), FLOAT32),
        (pa.array([1, 2**63 - 1]), FLOAT64),
        (pa.array([1.0, 1e300]), FLOAT32),
        (pa.array([1, 2**62], pa.timestamp("s")), TIMESTAMP),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_row(array: pa.Array, declared: int) -> None:
    with pytest.raises(WrongType) as raised:
        convert(array, declared, column="fare")
    assert raised.value.metadata["row"] == "1"
    assert raised.value.metadata["column"] == "fare"


@pytest.mark.parametrize("declared", list(ARROW_TYPES))
@pytest.mark.parametrize("array", [pa.array([NAN, None]), pa.nulls(2), pa.nulls(2, pa.duration("s"))])
def test_a_column_without_values_fits_every_type(array: pa.Array, declared: int) -> None:
    assert convert(array, declared, column="c").to_pylist() == [None, None]


def test_nan_is_null_beside_values() -> None:
    assert convert(pa.array([NAN, 1.5, None]), FLOAT64, column="c").to_pylist() == [None, 1.5, None]


@pytest.mark.parametrize("make", [pa.list_, pa.large_list, pa.list_view])
def test_lists_of_every_kind_convert_their_elements(make: Any) -> None:
    array = pa.array([[1, 2], None, []], make(pa.int32()))
    found = convert(array, value_pb2.DATA_TYPE_FLOAT64_LIST, column="c")
    assert found.type == arrow_type(value_pb2.DATA_TYPE_FLOAT64_LIST)
    assert found.to_pylist() == [[1.0, 2.0], None, []]


@pytest.mark.parametrize(
    ("rows", "declared"),
    [
        ([[True], [True, None]], value_pb2.DATA_TYPE_BOOL_LIST),
        ([[1.0], [NAN]], value_pb2.DATA_TYPE_FLOAT64_LIST),
        ([[1.0], [2.5]], value_pb2.DATA_TYPE_INT64_LIST),
        ([[], ["a"]], value_pb2.DATA_TYPE_INT64_LIST),
        ([[1.0, 2.0], [1.0, None]], value_pb2.DATA_TYPE_FLOAT32_VECTOR),
        ([[1.0, 2.0], [1.0]], value_pb2.DATA_TYPE_FLOAT32_VECTOR),
    ],
)
def test_a_list_with_a_wrong_element_is_refused_with_its_row(rows: list[Any], declared: int) -> None:
    with pytest.raises(WrongType) as raised:
        convert(pa.array(rows), declared, column="c")
    assert raised.value.metadata["row"] == "1"


def test_vectors_keep_their_size_beside_nulls() -> None:
    stored = pa.array([None, [1.0, 2.0]], pa.list_(pa.float64(), 2))
    found = convert(stored, value_pb2.DATA_TYPE_FLOAT32_VECTOR, vector_size=2, column="c")
    assert found.type == pa.list_(pa.float32(), 2)
    assert found.to_pylist() == [None, [1.0, 2.0]]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_integers_become_floats_only_if_the_float_is_equal(integers: list[int]) -> None:
    for declared, rounded in ((FLOAT64, float), (FLOAT32, lambda i: float(np.float32(i)))):
        first = next((i for i, v in enumerate(integers) if Fraction(rounded(v)) != v), None)
        if first is None:
            assert convert(pa.array(integers), declared, column="c").to_pylist() == integers
            continue
        with pytest.raises(WrongType) as raised:
            convert(pa.array(integers), declared, column="c")
        assert raised.value.metadata["row"] == str(first)


@given(st.lists(st.floats(), min_size=1, max_size=20))
def test_floats_become_integers_only_if_they_are_whole(floats: list[float]) -> None:
    fits = [math.isnan(f) or (math.isfinite(f) and f == int(f) and abs(f) < 2**53) for f in floats]
    if all(fits):
        expected = [None if math.isnan(f) else int(f) for f in floats]
        assert convert(pa.array(floats), INT64, column="c").to_pylist() == expected
        return
    with pytest.raises(WrongType) as raised:
        convert(pa.array(floats), INT64, column="c")
    assert raised.value.metadata["row"] == str(fits.index(False))


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=3), min_size=1, max_size=20))
def test_decimals_become_the_nearest_float(decimals: list[Decimal]) -> None:
    array = pa.array(decimals, pa.decimal256(60, 3))
    assert convert(array, FLOAT64, column="c").to_pylist() == [float(d) for d in decimals]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (pa.decimal128(12, 2), FLOAT64),
        (pa.decimal128(38, 0), INT64),
        (pa.float16(), FLOAT32),
        (pa.uint16(), INT64),
        (pa.date32(), TIMESTAMP),
        (pa.dictionary(pa.int32(), pa.string()), STRING),
        (pa.list_(pa.float64()), value_pb2.DATA_TYPE_FLOAT64_LIST),
        (pa.list_(pa.float32(), 3), value_pb2.DATA_TYPE_FLOAT32_VECTOR),
    ],
)
def test_a_column_without_a_declared_type_gets_that_of_its_values(stored: pa.DataType, expected: int) -> None:
    assert data_type_of(stored, "c") == expected


@pytest.mark.parametrize("stored", [pa.time32("s"), pa.duration("s"), pa.struct([("a", pa.int64())])])
def test_a_column_of_no_data_type_is_refused(stored: pa.DataType) -> None:
    with pytest.raises(WrongType, match="no data type stores"):
        data_type_of(stored, "c")


def test_folder_names_take_their_declared_type() -> None:
    texts = pa.array(["01", None])
    assert from_text(texts, STRING, column="store").to_pylist() == ["01", None]
    assert from_text(texts, INT64, column="store").to_pylist() == [1, None]
    assert from_text(pa.array(["TRUE"]), BOOL, column="x").to_pylist() == [True]
    expected = [datetime(2024, 5, 1, tzinfo=UTC)]
    assert from_text(pa.array(["2024-05-01"]), TIMESTAMP, column="day").to_pylist() == expected
    with pytest.raises(WrongType) as raised:
        from_text(pa.array([None, "1", "x"]), INT64, column="store")
    assert raised.value.metadata["row"] == "2"
