"""Conversion of columns and tables, and refusal of malformed ones."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common import columns
from flywheel_common.errors import InvalidArgument
from flywheel_protos.types.v1 import column_pb2, value_pb2


def test_packed_values_are_little_endian_and_the_bitmap_lsb_first() -> None:
    valid = np.array([True, False, True] + [True] * 6)
    column = columns.from_numpy("x", np.arange(9, dtype=np.int64), valid)
    assert column.data_type == value_pb2.DATA_TYPE_INT64
    assert column.packed == struct.pack("<9q", 0, 0, 2, 3, 4, 5, 6, 7, 8)
    assert column.validity == bytes([0b11111101, 0b00000001])


def test_a_column_without_nulls_needs_no_bitmap() -> None:
    assert columns.from_numpy("x", np.array([1.5, 2.5]), np.array([True, True])).validity == b""


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([True, False, True]), value_pb2.DATA_TYPE_BOOL),
        (np.array([1, -(2**62), 3], np.int64), value_pb2.DATA_TYPE_INT64),
        (np.array([1.5, np.nan, -0.0], np.float32), value_pb2.DATA_TYPE_FLOAT32),
        (np.array([1e300, 2.0], np.float64), value_pb2.DATA_TYPE_FLOAT64),
        (np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), value_pb2.DATA_TYPE_FLOAT32_VECTOR),
    ],
)
def test_fixed_width_values_round_trip_exactly(values: np.ndarray, kind: int) -> None:
    column = columns.from_numpy("x", values)
    assert column.data_type == kind
    back, valid = columns.to_numpy(column_pb2.Column.FromString(column.SerializeToString()), len(values))
    assert back.dtype == values.dtype
    assert back.shape == values.shape
    assert back.tobytes() == values.tobytes()
    assert valid.all()


def test_times_are_microseconds() -> None:
    moment = datetime(2013, 1, 1, 5, 15, tzinfo=UTC)
    column = columns.from_numpy("t", np.array([moment.replace(tzinfo=None)], "datetime64[ns]"))
    assert column.data_type == value_pb2.DATA_TYPE_TIMESTAMP
    assert columns.to_numpy(column)[0].tolist() == [int(moment.timestamp()) * 1_000_000]


def test_text_and_blobs_distinguish_null_and_empty() -> None:
    text, valid = columns.to_numpy(columns.from_texts("s", ["ä", None, ""]))
    assert (text.tolist(), valid.tolist()) == (["ä", "", ""], [True, False, True])
    blobs, valid = columns.to_numpy(columns.from_blobs("b", [b"\x00", None]))
    assert (blobs.tolist(), valid.tolist()) == ([b"\x00", b""], [True, False])


def test_lists_of_varying_length_round_trip() -> None:
    column = columns.from_lists("l", [[1, 2], None, [], [3]], value_pb2.DATA_TYPE_INT64_LIST)
    rows, valid = columns.to_numpy(column, 4)
    assert [list(r) for r in rows] == [[1, 2], [], [], [3]]
    assert valid.tolist() == [True, False, True, True]
    texts = columns.from_lists("l", [["a"], ["b", "c"]], value_pb2.DATA_TYPE_STRING_LIST)
    assert [list(r) for r in columns.to_numpy(texts)[0]] == [["a"], ["b", "c"]]


def test_unpacked_values_are_read() -> None:
    ints = column_pb2.Column(
        name="b", data_type=value_pb2.DATA_TYPE_BOOL, ints=column_pb2.Int64Values(values=[1, 0])
    )
    assert columns.to_numpy(ints)[0].tolist() == [True, False]
    doubles = column_pb2.Column(
        name="v",
        data_type=value_pb2.DATA_TYPE_FLOAT64_VECTOR,
        vector_size=2,
        doubles=column_pb2.DoubleValues(values=[1, 2, 3, 4]),
    )
    assert columns.to_numpy(doubles, 2)[0].tolist() == [[1.0, 2.0], [3.0, 4.0]]


Column = column_pb2.Column
MALFORMED = {
    "no type": Column(name="x", packed=b"12345678"),
    "half a value": Column(name="x", data_type=value_pb2.DATA_TYPE_INT64, packed=b"123"),
    "short bitmap": Column(name="x", data_type=value_pb2.DATA_TYPE_BOOL, packed=b"\1" * 9, validity=b"\1"),
    "long bitmap": Column(name="x", data_type=value_pb2.DATA_TYPE_BOOL, packed=b"\1", validity=b"\1\1"),
    "no vector size": Column(name="x", data_type=value_pb2.DATA_TYPE_FLOAT32_VECTOR, packed=b"1234"),
    "half a vector": Column(
        name="x", data_type=value_pb2.DATA_TYPE_FLOAT32_VECTOR, vector_size=2, packed=b"1234"
    ),
    "huge vector": Column(
        name="x", data_type=value_pb2.DATA_TYPE_FLOAT64_VECTOR, vector_size=2**32 - 1, packed=b"12345678"
    ),
    "half a readable vector": Column(
        name="x",
        data_type=value_pb2.DATA_TYPE_FLOAT64_VECTOR,
        vector_size=2,
        doubles=column_pb2.DoubleValues(values=[1, 2, 3]),
    ),
    "text as number": Column(
        name="x", data_type=value_pb2.DATA_TYPE_INT64, strings=column_pb2.StringValues(values=["1"])
    ),
    "number as text": Column(name="x", data_type=value_pb2.DATA_TYPE_STRING, packed=b"1"),
    "list without offsets": Column(name="x", data_type=value_pb2.DATA_TYPE_INT64_LIST, packed=b"12345678"),
    "list past the end": Column(
        name="x",
        data_type=value_pb2.DATA_TYPE_INT64_LIST,
        packed=b"12345678",
        offsets=struct.pack("<2I", 0, 2**32 - 1),
    ),
    "falling offsets": Column(
        name="x",
        data_type=value_pb2.DATA_TYPE_INT64_LIST,
        packed=b"12345678",
        offsets=struct.pack("<4I", 0, 1, 0, 1),
    ),
}


@pytest.mark.parametrize("column", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_columns_are_refused_with_a_reason(column: column_pb2.Column) -> None:
    with pytest.raises(InvalidArgument) as caught:
        columns.to_numpy(column)
    assert caught.value.reason == "INVALID_COLUMN"


@given(st.binary(max_size=60))
def test_random_bytes_are_a_column_or_an_invalid_argument(data: bytes) -> None:
    try:
        column = column_pb2.Column.FromString(data)
    except Exception:
        return
    try:
        values, valid = columns.to_numpy(column)
    except InvalidArgument:
        return
    assert len(values) == len(valid)


@given(
    st.integers(1, 25),
    st.integers(0, 5),
    st.binary(max_size=64),
    st.binary(max_size=3),
    st.binary(max_size=16),
)
def test_random_columns_are_read_or_refused(
    kind: int, size: int, packed: bytes, validity: bytes, offsets: bytes
) -> None:
    column = Column(
        name="x", data_type=kind, vector_size=size, packed=packed, validity=validity, offsets=offsets
    )
    try:
        values, valid = columns.to_numpy(column)
    except InvalidArgument as error:
        if error.reason != "INVALID_COLUMN":
            raise
    else:
        assert len(values) == len(valid)


def test_a_table_refuses_unequal_lengths_and_duplicate_names() -> None:
    x = columns.from_numpy("x", np.arange(3))
    table = columns.to_table([x, columns.from_texts("y", ["a", "b", None])])
    assert table.row_count == 3
    assert {name: valid.tolist() for name, (_, valid) in columns.from_table(table).items()} == {
        "x": [True, True, True],
        "y": [True, True, False],
    }
    with pytest.raises(InvalidArgument):
        columns.from_table(column_pb2.Table(row_count=4, columns=[x]))
    with pytest.raises(InvalidArgument):
        columns.from_table(column_pb2.Table(row_count=3, columns=[x, x]))
    with pytest.raises(InvalidArgument):
        columns.to_table([x, columns.from_numpy("y", np.arange(2))])


def test_rows_are_taken_from_columns_of_every_kind() -> None:
    table = columns.to_table(
        [
            columns.from_numpy("floats", np.array([1.0, 2.0, 3.0]), np.array([True, False, True])),
            columns.from_numpy("bools", np.array([True, False, True])),
            columns.from_numpy("vectors", np.arange(6, dtype=np.float32).reshape(3, 2)),
            columns.from_texts("texts", ["a", None, "c"]),
            columns.from_blobs("blobs", [b"x", b"y", None]),
            columns.from_lists("lists", [[1, 2], None, []], value_pb2.DATA_TYPE_INT64_LIST),
        ]
    )
    taken = columns.take_rows(table, np.array([2, 0]))
    assert taken == columns.to_table(
        [
            columns.from_numpy("floats", np.array([3.0, 1.0])),
            columns.from_numpy("bools", np.array([True, True])),
            columns.from_numpy("vectors", np.array([[4, 5], [0, 1]], np.float32)),
            columns.from_texts("texts", ["c", "a"]),
            columns.from_blobs("blobs", [None, b"x"]),
            columns.from_lists("lists", [[], [1, 2]], value_pb2.DATA_TYPE_INT64_LIST),
        ]
    )


@pytest.mark.parametrize("rows", [0, 1, 8, 9])
def test_columns_decoded_together_equal_columns_decoded_alone(rows: int) -> None:
    rng = np.random.default_rng(rows)
    some = rng.random(rows) < 0.5
    texts = [f"t{i}" if ok else None for i, ok in enumerate(some.tolist())]
    sent = [
        columns.from_numpy("floats", rng.normal(size=rows), some),
        columns.from_numpy("singles", rng.normal(size=rows).astype(np.float32)),
        columns.from_numpy("integers", rng.integers(-9, 9, rows), ~some),
        columns.from_numpy("bools", some, some),
        columns.from_numpy("vectors", rng.normal(size=(rows, 2)).astype(np.float32), some),
        columns.from_texts("texts", texts),
        columns.from_lists("lists", [[i] for i in range(rows)], value_pb2.DATA_TYPE_INT64_LIST),
        column_pb2.Column(
            name="typed",
            data_type=value_pb2.DATA_TYPE_FLOAT64,
            doubles=column_pb2.DoubleValues(values=np.arange(rows, dtype=float)),
        ),
    ]
    together = columns.all_to_numpy(sent, rows)
    for column, (values, valid) in zip(sent, together, strict=True):
        alone, mask = columns.to_numpy(column, rows)
        assert (values.dtype, valid.tolist()) == (alone.dtype, mask.tolist())
        np.testing.assert_array_equal(values, alone)
    if rows:
        with pytest.raises(InvalidArgument, match="rows"):
            columns.all_to_numpy(sent, rows + 1)
