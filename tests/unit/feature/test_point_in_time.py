"""The point-in-time join against a brute-force oracle that follows its definition."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_feature.offline.joins import point_in_time
from flywheel_feature.offline.joins.point_in_time import MATCHED_TIME, as_of_join, latest_join
from tests.support.builders.feature_units import UTC_MICROSECONDS, at


def spine_frame(rows: list[tuple[Any, Any, Any]], unit: pl.DataType = UTC_MICROSECONDS) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "carrier": pl.Series([r[0] for r in rows], dtype=pl.String),
            "flight": pl.Series([r[1] for r in rows], dtype=pl.Int64),
            "t": pl.Series([at(r[2]) for r in rows], dtype=UTC_MICROSECONDS).cast(unit),
        }
    )


def view_frame(rows: list[tuple[Any, Any, Any, Any, Any]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "carrier": pl.Series([r[0] for r in rows], dtype=pl.String),
            "flight": pl.Series([r[1] for r in rows], dtype=pl.Int64),
            "happened": pl.Series([at(r[2]) for r in rows], dtype=UTC_MICROSECONDS),
            "created": pl.Series([at(r[3]) for r in rows], dtype=UTC_MICROSECONDS),
            "value": pl.Series([r[4] for r in rows], dtype=pl.Float64),
        }
    )


def oracle(
    spine: list[Any], rows: list[Any], ttl: int | None, known_at: bool
) -> list[tuple[float | None, datetime | None]]:
    answers: list[tuple[float | None, datetime | None]] = []
    for carrier, flight, t in spine:
        best = None
        for place, (row_carrier, row_flight, happened, created, value) in enumerate(rows):
            if t is None or happened is None or None in (carrier, flight, row_carrier, row_flight):
                continue
            if (carrier, flight) != (row_carrier, row_flight) or happened > t:
                continue
            known = happened if created is None else created
            if known_at and known > t:
                continue
            candidate = (happened, known if known_at else 0, place, value)
            if best is None or candidate[:3] > best[:3]:
                best = candidate
        if best is None or (ttl is not None and t - best[0] > ttl):
            answers.append((None, None))
        else:
            answers.append((best[3], at(best[0])))
    return answers


carriers = st.sampled_from(["AA", "UA", "", None])
flights = st.sampled_from([1, 2, None])
minutes = st.one_of(st.none(), st.integers(0, 12))
values = st.one_of(st.none(), st.floats(-10, 10))
spines = st.lists(st.tuples(carriers, flights, minutes), max_size=12)
views = st.lists(st.tuples(carriers, flights, minutes, minutes, values), max_size=16)
ttls = st.one_of(st.none(), st.integers(1, 6))


@settings(max_examples=400, deadline=None)
@given(spine=spines, rows=views, ttl=ttls, known_at=st.booleans())
def test_the_join_equals_its_definition(
    spine: list[Any], rows: list[Any], ttl: int | None, known_at: bool
) -> None:
    joined = as_of_join(
        spine_frame(spine),
        view_frame(rows),
        keys=["carrier", "flight"],
        spine_time="t",
        event_time="happened",
        created_time="created" if known_at else None,
        ttl=(ttl or 0) * 60_000_000,
        columns={"value": "view__value"},
    )
    assert joined.columns == ["view__value", MATCHED_TIME]
    assert oracle(spine, rows, ttl, known_at) == list(joined.iter_rows())


@pytest.mark.parametrize("keys", [["carrier", "flight"], ["carrier"]])
@pytest.mark.parametrize("equal_hashes", ["all", "some", "none"])
@settings(max_examples=100, deadline=None)
@given(spine=spines, rows=views, known_at=st.booleans())
def test_keys_with_equal_hashes_are_not_confused(
    equal_hashes: str, keys: list[str], spine: list[Any], rows: list[Any], known_at: bool
) -> None:
    hashes = {"all": pl.lit(0, pl.UInt64), "some": pl.col("carrier").hash() % 2}
    if keys == ["carrier"]:
        spine, rows = [(c, 1, t) for c, _, t in spine], [(c, 1, *rest) for c, _, *rest in rows]
    with pytest.MonkeyPatch.context() as patch:
        if equal_hashes in hashes:
            patch.setattr(point_in_time, "_hash", lambda _: hashes[equal_hashes])
        joined = as_of_join(
            spine_frame(spine),
            view_frame(rows),
            keys=keys,
            spine_time="t",
            event_time="happened",
            created_time="created" if known_at else None,
            columns={"value": "value"},
        )
    assert oracle(spine, rows, None, known_at) == list(joined.iter_rows())


@settings(max_examples=100, deadline=None)
@given(spine=spines, rows=views)
def test_the_naive_join_takes_the_newest_value_at_any_time(spine: list[Any], rows: list[Any]) -> None:
    joined = latest_join(
        spine_frame(spine),
        view_frame(rows),
        keys=["carrier", "flight"],
        event_time="happened",
        columns={"value": "v"},
    )
    late_spine = [(c, f, 10_000) for c, f, _ in spine]
    assert oracle(late_spine, rows, None, False) == list(joined.iter_rows())


@pytest.mark.parametrize(("age", "found"), [(59, True), (60, True), (61, False)])
def test_a_row_exactly_as_old_as_its_ttl_still_counts(age: int, found: bool) -> None:
    joined = as_of_join(
        spine_frame([("AA", 1, age)]),
        view_frame([("AA", 1, 0, None, 5.0)]),
        keys=["carrier", "flight"],
        spine_time="t",
        event_time="happened",
        ttl=60 * 60_000_000,
        columns={"value": "value"},
    )
    assert [5.0 if found else None] == joined["value"].to_list()


def test_times_of_any_zone_and_unit_are_the_same_instant() -> None:
    instants = view_frame([("AA", 1, 10, None, 1.0), ("AA", 1, 20, None, 2.0)])
    spine = spine_frame([("AA", 1, 10), ("AA", 1, 19), ("AA", 1, 20)])
    for unit, zone in (("ms", "America/New_York"), ("ns", "Asia/Kathmandu"), ("us", None)):
        moved = pl.col("t").cast(pl.Datetime(unit, "UTC"))  # type: ignore[arg-type]
        moved = moved.dt.convert_time_zone(zone) if zone else moved.dt.replace_time_zone(None)
        joined = as_of_join(
            spine.with_columns(moved),
            instants.with_columns(pl.col("happened").dt.convert_time_zone("Europe/Berlin")),
            keys=["carrier", "flight"],
            spine_time="t",
            event_time="happened",
            columns={"value": "value"},
        )
        assert joined["value"].to_list() == [1.0, 1.0, 2.0]


def test_duplicate_spine_rows_are_kept_in_place() -> None:
    spine = [("UA", 2, 9), ("AA", 1, 5), ("UA", 2, 9), ("AA", 1, 1), ("AA", 1, 5)]
    joined = as_of_join(
        spine_frame(spine),
        view_frame([("AA", 1, 3, None, 3.0), ("UA", 2, 4, None, 4.0)]),
        keys=["carrier", "flight"],
        spine_time="t",
        event_time="happened",
        columns={"value": "value"},
    )
    assert joined["value"].to_list() == [4.0, 3.0, 4.0, None, 3.0]


def test_an_empty_view_gives_typed_nulls() -> None:
    joined = as_of_join(
        spine_frame([("AA", 1, 5)]),
        view_frame([]),
        keys=["carrier", "flight"],
        spine_time="t",
        event_time="happened",
        columns={"value": "value"},
    )
    assert {"value": pl.Float64, MATCHED_TIME: UTC_MICROSECONDS} == dict(joined.schema)
    assert joined["value"].to_list() == [None]
