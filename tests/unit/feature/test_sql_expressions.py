"""SQL expressions: values per row, types, and rejected expressions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_common.errors import InvalidArgument
from flywheel_feature.expressions.sql import compile_expressions, compile_label, compile_predicate

BOOL, INT64, FLOAT32, FLOAT64, STRING, TIMESTAMP = 1, 2, 3, 4, 5, 7
SCHEMA = {"delay": FLOAT64, "seats": INT64, "origin": STRING, "at": TIMESTAMP, "wet": BOOL}
FRAME = {
    "delay": pl.Float64,
    "seats": pl.Int64,
    "origin": pl.String,
    "at": pl.Datetime("us", "UTC"),
    "wet": pl.Boolean,
}

EXPRESSIONS = [
    ("doubled", FLOAT64, "delay * 2"),
    ("late", BOOL, "delay > 15"),
    ("delay_or_zero", FLOAT32, "COALESCE(delay, 0)"),
    ("per_seat", FLOAT64, "delay / NULLIF(seats, 0)"),
    (
        "place",
        STRING,
        "CASE WHEN origin = 'JFK' THEN 'far' WHEN origin IS NULL THEN 'unknown' ELSE LOWER(origin) END",
    ),
    ("hour", INT64, "EXTRACT(HOUR FROM at)"),
    ("as_number", FLOAT64, "CAST(origin AS DOUBLE)"),
    ("worst", FLOAT64, "GREATEST(delay, seats)"),
    ("dry", BOOL, "NOT wet"),
    ("listed", BOOL, "origin IN ('JFK', 'EWR')"),
    ("third", FLOAT64, "delay / 3"),
]
rows = st.lists(
    st.fixed_dictionaries(
        {
            "delay": st.one_of(st.none(), st.floats(-1e6, 1e6)),
            "seats": st.one_of(st.none(), st.integers(-(2**31), 2**31)),
            "origin": st.one_of(st.none(), st.sampled_from(["JFK", "EWR", "", "12.5", "é"])),
            "at": st.one_of(
                st.none(), st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
            ),
            "wet": st.one_of(st.none(), st.booleans()),
        }
    ),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(rows=rows)
def test_a_row_alone_gives_the_same_values_as_in_a_batch(rows: list[dict[str, Any]]) -> None:
    compiled = compile_expressions(EXPRESSIONS, SCHEMA)
    together = compiled.evaluate(pl.DataFrame(rows, schema=FRAME))
    alone = [compiled.evaluate(pl.DataFrame([row], schema=FRAME)).row(0) for row in rows]
    assert len(rows) == together.height
    assert alone == together.rows()


def test_values_follow_sql_and_nulls_stay_null() -> None:
    frame = pl.DataFrame(
        [
            {
                "delay": 20.0,
                "seats": 4,
                "origin": "JFK",
                "at": datetime(2013, 5, 1, 17, 30, tzinfo=UTC),
                "wet": True,
            },
            {"delay": None, "seats": 0, "origin": None, "at": None, "wet": None},
        ],
        schema=FRAME,
    )
    result = compile_expressions(EXPRESSIONS, SCHEMA).evaluate(frame)
    assert result.row(0) == (40.0, True, 20.0, 5.0, "far", 17, None, 20.0, False, True, 20 * (1 / 3))
    assert result.row(1) == (None, None, 0.0, None, "unknown", None, None, 0.0, None, None, None)
    assert [FRAME["delay"], pl.Boolean, pl.Float32, pl.Float64, pl.String, pl.Int64] == result.dtypes[:6]


def test_nan_results_are_null() -> None:
    compiled = compile_expressions([("x", FLOAT64, "delay / delay")], SCHEMA)
    assert [None, 1.0] == compiled.evaluate(pl.DataFrame({"delay": [0.0, 2.0]}))["x"].to_list()


def test_only_columns_that_the_expression_reads_are_required() -> None:
    compiled = compile_expressions([("x", FLOAT64, "delay + seats")], SCHEMA)
    assert compiled.input_columns == ("delay", "seats")
    assert compiled.evaluate(pl.DataFrame({"seats": [1], "delay": [2.0], "more": ["?"]}))["x"].to_list() == [
        3.0
    ]
    with pytest.raises(InvalidArgument, match="seats"):
        compiled.evaluate(pl.DataFrame({"delay": [2.0]}))


@pytest.mark.parametrize(
    "sql",
    [
        "SUM(delay)",
        "delay - AVG(delay) OVER (PARTITION BY origin)",
        "LAG(delay, 1) OVER (ORDER BY at)",
        "FIRST(delay)",
        "COUNT(*)",
        "COALESCE(delay, MAX(delay))",
        "delay + (SELECT 1)",
        "CASE WHEN delay > 1 THEN NOW() ELSE at END",
        "delay + 0 * EXTRACT(YEAR FROM CURRENT_TIMESTAMP)",
        "RANDOM() + delay",
        "READ_CSV('/etc/passwd')",
        "UNNEST(origin)",
        "delay; SELECT 1",
        "delay, seats",
        "delay -- seats",
        "delay +",
        "*",
        "1 + 1",
        "",
        "origin::DOUBLE",
        "nothing + 1",
        '"^.*$"',
        "origin * 2",
        "delay || " + "1" * 5000,
    ],
)
def test_expressions_over_other_rows_or_the_clock_are_rejected(sql: str) -> None:
    with pytest.raises(InvalidArgument) as rejected:
        compile_expressions([("x", FLOAT64, sql)], SCHEMA)
    assert rejected.value.reason == "INVALID_EXPRESSION"
    assert "x" in rejected.value.message


@pytest.mark.parametrize(
    ("kind", "sql"),
    [(STRING, "delay"), (INT64, "delay"), (BOOL, "seats"), (FLOAT64, "origin"), (TIMESTAMP, "seats")],
)
def test_a_result_of_another_type_than_declared_is_rejected(kind: int, sql: str) -> None:
    with pytest.raises(InvalidArgument, match="declared"):
        compile_expressions([("x", kind, sql)], SCHEMA)


def test_an_unknown_column_error_lists_the_columns() -> None:
    with pytest.raises(InvalidArgument, match=r"unknown column 'arr_delay'.*delay, seats"):
        compile_expressions([("x", FLOAT64, "arr_delay + 1")], SCHEMA)


def test_keywords_inside_string_literals_are_allowed() -> None:
    compiled = compile_expressions(
        [("x", STRING, "CASE WHEN origin = 'SELECT SUM(1) -- CAST(' THEN 'OVER' ELSE origin END")], SCHEMA
    )
    assert compiled.evaluate(pl.DataFrame({"origin": ["SELECT SUM(1) -- CAST(", "JFK"]}))["x"].to_list() == [
        "OVER",
        "JFK",
    ]


def test_a_label_may_be_a_condition_or_a_number() -> None:
    frame = pl.DataFrame({"delay": [20.0, 3.0, None]})
    assert compile_label("delay >= 15", SCHEMA).evaluate(frame)["label"].to_list() == [1.0, 0.0, None]
    assert compile_label("delay", SCHEMA).evaluate(frame)["label"].to_list() == [20.0, 3.0, None]
    with pytest.raises(InvalidArgument, match="label"):
        compile_label("origin", SCHEMA)


def test_timestamps_are_the_same_instant_in_any_zone() -> None:
    compiled = compile_expressions(
        [("hour", INT64, "EXTRACT(HOUR FROM at)"), ("after", BOOL, "at > TIMESTAMP '2013-05-01 17:00:00'")],
        SCHEMA,
    )
    utc = pl.DataFrame({"at": [datetime(2013, 5, 1, 17, 30, tzinfo=UTC)]}, schema={"at": FRAME["at"]})
    for frame in (
        utc,
        utc.with_columns(pl.col("at").dt.convert_time_zone("Asia/Tokyo")),
        utc.with_columns(pl.col("at").dt.replace_time_zone(None)),
    ):
        assert compiled.evaluate(frame).row(0) == (17, True)


def test_a_filter_keeps_rows_where_it_is_true() -> None:
    compiled = compile_predicate("delay > 15 AND NOT wet", SCHEMA)
    frame = pl.DataFrame({"delay": [20.0, 20.0, None], "wet": [False, True, False]})
    assert compiled.evaluate(frame)["filter"].to_list() == [True, False, None]
