"""Plain arithmetic gives, to the last bit, what the expression engine gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_feature.expressions.arithmetic import arithmetic
from flywheel_feature.expressions.sql import compile_expressions

FLOAT64 = 4
COLUMNS = ("a", "b", "view__mean_24h")
numbers = st.one_of(
    st.integers(0, 10**15 - 1).map(str),
    st.decimals(0, 10**6, allow_nan=False, allow_infinity=False, places=6).map(lambda d: f"{d:f}"),
    st.sampled_from(["0", "0.0", "1", "2.0", "0.1", "3"]),
)


def combined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["+", "-", "*", "/", " - ", " / "])
    either = st.tuples(st.one_of(parts, numbers), operators, parts) | st.tuples(parts, operators, numbers)
    return st.one_of(either.map("".join), parts.map(lambda p: f"({p})"), parts.map(lambda p: f"-{p}"))


texts = st.recursive(st.sampled_from(COLUMNS), combined, max_leaves=8)
values = st.one_of(
    st.none(), st.floats(allow_nan=False), st.floats(-1e3, 1e3), st.sampled_from([0.0, -0.0, 1.0, np.inf])
)
tables = st.lists(st.tuples(*[values] * len(COLUMNS)), min_size=1, max_size=6)


@settings(max_examples=1000, deadline=None)
@given(sql=texts, rows=tables)
def test_arithmetic_equals_the_sql_engine_bit_for_bit(sql: str, rows: list[tuple[float | None, ...]]) -> None:
    plain = arithmetic(sql, COLUMNS)
    if plain is None:
        return
    frame = pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS, pl.Float64), orient="row")
    engine = compile_expressions([("x", FLOAT64, sql)], dict.fromkeys(COLUMNS, FLOAT64)).evaluate(frame)["x"]
    columns = {
        name: (frame[name].fill_null(0.0).to_numpy(), frame[name].is_not_null().to_numpy())
        for name in COLUMNS
    }
    found, there = plain.compute(columns)
    assert engine.is_not_null().to_list() == there.tolist()
    expected = engine.fill_null(0.0).to_numpy()
    assert expected.view("<i8").tolist() == found.view("<i8").tolist()


@pytest.mark.parametrize(
    ("sql", "read"),
    [
        ("a - view__mean_24h", ("a", "view__mean_24h")),
        (" a / (b + 2.0) ", ("a", "b")),
        ("3 / a * a", ("a",)),
        ("1.5 * (a - b) / (a + b)", ("a", "b")),
    ],
)
def test_sums_and_ratios_are_arithmetic(sql: str, read: tuple[str, ...]) -> None:
    plain = arithmetic(sql, COLUMNS)
    assert plain is not None
    assert read == plain.columns


@pytest.mark.parametrize(
    "sql",
    [
        "a",
        "1 + 2",
        "a + 1 / 2",
        "a / 3",
        "a / (1 + 2)",
        "a + 0",
        "True * a",
        "a % b",
        "a ** b",
        "a // b",
        "a--b",
        "c + a",
        "ABS(a)",
        "a > b",
        "a + NULL",
        "a AND b",
        'a + "b"',
        "a + 1e5",
        "a + 0x10",
        "a + 1_000",
        "a + 1j",
        "a + 12345678901234567890",
        "a b",
        "a +",
        "(a + b",
        "a.real + b",
        "CASE WHEN a > 1 THEN b ELSE a END",
        "(" * 5000 + "a" + ")" * 5000,
        "",
    ],
)
def test_other_expressions_are_left_to_the_sql_engine(sql: str) -> None:
    assert arithmetic(sql, COLUMNS) is None


def test_null_inputs_and_nan_results_are_null() -> None:
    plain = arithmetic("a / b", COLUMNS)
    assert plain is not None
    columns: dict[str, Any] = {
        "a": (np.array([1.0, 0.0, 5.0, 7.0]), np.array([True, True, False, True])),
        "b": (np.array([4.0, 0.0, 2.0, 0.0]), np.array([True] * 4)),
    }
    found, there = plain.compute(columns)
    assert [0.25, 0.0, 0.0, np.inf] == found.tolist()
    assert [True, False, False, True] == there.tolist()
