"""Conversion of frames and dicts to packed columns and back."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import flywheel as fw
from flywheel.tables import to_dict, to_table
from flywheel_common.errors import InvalidColumn, WrongType

MOMENT = datetime(2013, 4, 1, 12, tzinfo=UTC)
MICROS = 1_364_817_600_000_000  # date -u -d 2013-04-01T12:00:00Z +%s, times 10^6


def test_a_dict_of_values_round_trips() -> None:
    rows = {"text": ["a", None], "whole": [1, None], "real": [0.5, None], "flag": [True, None]}
    assert to_dict(to_table(rows)) == rows


def test_a_column_without_any_value_has_the_type_of_the_schema() -> None:
    schema = {"real": fw.FLOAT64, "flag": fw.BOOL, "at": fw.TIMESTAMP, "whole": fw.INT64, "text": fw.STRING}
    rows = {name: [None, None] for name in schema}
    table = to_table(rows, schema)
    assert [int(kind) for kind in schema.values()] == [c.data_type for c in table.columns]
    assert to_dict(table) == rows


def test_times_are_sent_as_microseconds_since_1970() -> None:
    assert to_dict(to_table({"at": [MOMENT, None]})) == {"at": [MICROS, None]}
    frame = pl.DataFrame({"at": [MOMENT]}, schema={"at": pl.Datetime("us", "UTC")})
    assert to_dict(to_table(frame)) == {"at": [MICROS]}


def test_a_schema_selects_orders_and_types_the_columns() -> None:
    frame = pl.DataFrame({"b": [1, 2], "a": ["x", "y"], "unused": [None, None]})
    table = to_table(frame, {"a": fw.STRING, "b": fw.FLOAT64})
    assert [(c.name, c.data_type) for c in table.columns] == [("a", fw.STRING), ("b", fw.FLOAT64)]
    assert to_dict(table) == {"a": ["x", "y"], "b": [1.0, 2.0]}


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(Exception, match="length"):
        to_table({"a": [1], "b": [1, 2]})


def test_lists_vectors_and_bytes_round_trip_with_nulls() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    rows = {
        "texts": [["a", ""], [], None],
        "moments": [[moment], [], None],
        "pair": [[0.5, 1.5], None, [0.0, 0.0]],
        "raw": [b"\0", b"", None],
        "nothing": [None, None, None],
    }
    schema = {
        "texts": fw.STRING_LIST,
        "moments": fw.TIMESTAMP_LIST,
        "pair": fw.vector(2),
        "raw": fw.BYTES,
        "nothing": fw.vector(4, fw.FLOAT64),
    }
    table = to_table(rows, schema)
    assert [c.vector_size for c in table.columns] == [0, 0, 2, 0, 4]
    wanted = {**rows, "moments": [[int(moment.timestamp()) * 1_000_000], [], None]}
    assert to_dict(table) == wanted


def test_frame_columns_decide_the_types() -> None:
    frame = pl.DataFrame(
        {"v": [[0.5, 1.0]], "l": [[1, 2]], "b": [b"x"], "f": [[True]]},
        schema={
            "v": pl.Array(pl.Float32, 2),
            "l": pl.List(pl.Int64),
            "b": pl.Binary,
            "f": pl.List(pl.Boolean),
        },
    )
    kinds = {c.name: c.data_type for c in to_table(frame).columns}
    assert kinds == {"v": int(fw.vector(2)), "l": fw.INT64_LIST, "b": fw.BYTES, "f": fw.BOOL_LIST}


def test_vectors_of_differing_sizes_are_refused() -> None:
    with pytest.raises(WrongType, match=r"row 1: .* has 2 elements instead of 1"):
        to_table({"v": [[1.0], [1.0, 2.0]]}, {"v": fw.vector(1)})


def test_decimals_without_a_schema_keep_their_fraction() -> None:
    for rows in (
        {"fare": [Decimal("12.99")]},
        pl.DataFrame({"fare": [Decimal("12.99")]}),
        pd.DataFrame({"fare": [Decimal("12.99")]}),
    ):
        assert to_dict(to_table(rows)) == {"fare": [12.99]}


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        ([1, 2.7], fw.INT64),
        ([1.0, 1e30], fw.INT64),
        (["x", None, 2134], fw.STRING),
        ([1, 1_700_000_000], fw.TIMESTAMP),
        ([[True], [True, None]], fw.BOOL_LIST),
        ([True, float("nan")], fw.BOOL),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_column(values: list[Any], declared: int) -> None:
    with pytest.raises(WrongType) as raised:
        to_table({"x": values}, {"x": declared})
    assert raised.value.metadata["column"] == "x"


@pytest.mark.parametrize("zone", ["America/New_York", "UTC"])
def test_naive_times_are_utc_in_every_kind_of_rows(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        naive = MOMENT.replace(tzinfo=None)
        for rows in (
            {"at": [naive, None]},
            {"at": [None, naive]},
            pl.DataFrame({"at": [naive, None]}),
            pd.DataFrame({"at": pd.to_datetime([naive, None])}),
            {"at": pd.Series([naive, None], index=[5, 6])},
        ):
            assert set(to_dict(to_table(rows, {"at": fw.TIMESTAMP}))["at"]) == {MICROS, None}
        listed = to_table({"at": [[naive], [MOMENT]]}, {"at": fw.TIMESTAMP_LIST})
        assert to_dict(listed) == {"at": [[MICROS], [MICROS]]}
    finally:
        monkeypatch.undo()
        time.tzset()


def test_nanoseconds_are_cut_to_microseconds() -> None:
    stamps = pd.DataFrame({"at": [pd.Timestamp("2013-04-01T12:00:00.000000999Z")]})
    assert to_dict(to_table(stamps)) == {"at": [MICROS]}


def test_a_named_index_of_pandas_is_a_column() -> None:
    frame = pd.DataFrame({"x": [1.5]}, index=pd.Index(["a"], name="key"))
    assert to_dict(to_table(frame)) == {"key": ["a"], "x": [1.5]}


def test_half_floats_and_nan_are_sent_as_floats_and_null() -> None:
    assert to_dict(to_table({"x": np.array([1.5, np.nan], np.float16)})) == {"x": [1.5, None]}


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidColumn, match="'x'"):
        to_table(pa.table([pa.array([1]), pa.array([2])], names=["x", "x"]))


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InvalidColumn, match="no column 'b'; they have: a"):
        to_table({"a": [1]}, {"a": fw.INT64, "b": fw.INT64})
