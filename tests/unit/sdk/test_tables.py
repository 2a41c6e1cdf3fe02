"""Frames and dicts become packed columns without losing a value, a null or a type."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

import flywheel as fw
from flywheel.tables import to_dict, to_table

MOMENT = datetime(2013, 4, 1, 12, tzinfo=UTC)
MICROS = 1_364_817_600_000_000  # date -u -d 2013-04-01T12:00:00Z +%s, times 10^6


def test_a_dict_of_values_comes_back_as_it_was() -> None:
    rows = {"text": ["a", None], "whole": [1, None], "real": [0.5, None], "flag": [True, None]}
    assert to_dict(to_table(rows)) == rows


def test_times_travel_as_microseconds_since_1970() -> None:
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
