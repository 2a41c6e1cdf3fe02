"""Stream features recomputed from exactly the events of an online answer, however far the stream lagged."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flywheel_feature.definitions.model import Aggregation, AggregationFunction
from flywheel_feature.offline.joins import applied_windows
from flywheel_feature.offline.joins.applied_windows import Stream, applied_features
from flywheel_feature.offline.joins.windows import WindowFeature
from flywheel_feature.windows.aggregations import feature_type
from flywheel_feature.windows.applied_offsets import positions_of
from flywheel_feature.windows.event_order import event_ranks
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_reading import TileReader
from flywheel_feature.windows.tile_writing import Events, partials, state_of
from tests.support.builders.feature_units import (
    MINUTE,
    UTC_MICROSECONDS,
    at,
    float_column,
    is_close,
    microseconds,
    rows_of,
)

F = AggregationFunction
TILE = 5 * MINUTE
AGGREGATIONS = [
    Aggregation(
        f"{function.name}_{window}", function, "" if function == F.COUNT else "v", window * MINUTE, limit=20
    )
    for window in (5, 15, 60)
    for function in (F.COUNT, F.SUM, F.MEAN, F.MIN, F.MAX, F.STD, F.LAST, F.FIRST, F.LAST_N)
]
FEATURES = [
    WindowFeature(a.name, a.function, a.field, a.window, feature_type(a.function), a.limit)
    for a in AGGREGATIONS
]
Arrival = tuple[str, int, float | None, int]
"""Origin, minute of the event, value, partition; offsets count up per partition in the order of arrival."""
Read = tuple[str, int, int]
"""Origin, minute of the read, number of events that had arrived by then."""

arrivals_of = st.lists(
    st.tuples(
        st.sampled_from(["JFK", "LGA"]),
        st.integers(-30, 120),
        st.one_of(st.none(), st.floats(-1000, 1000).map(lambda x: round(x, 2))),
        st.integers(0, 1),
    ),
    max_size=20,
)
reads_of = st.lists(
    st.tuples(st.sampled_from(["JFK", "LGA", "EWR"]), st.integers(-30, 130), st.integers(0, 20)), max_size=8
)


def offsets_of(arrivals: list[Arrival]) -> list[int]:
    following = [0, 0]
    offsets = []
    for *_, partition in arrivals:
        offsets.append(following[partition])
        following[partition] += 1
    return offsets


def state_after(layout: TileLayout, arrivals: list[Arrival], origin: str, count: int) -> bytes | None:
    """The state of the entity after the first `count` events."""
    offsets = offsets_of(arrivals)
    chosen = [(i, e) for i, e in enumerate(arrivals[:count]) if e[0] == origin]
    time = microseconds([e[1] for _, e in chosen])
    value, present = float_column([e[2] for _, e in chosen])
    ranks = event_ranks([f"e{i}" for i, _ in chosen])
    deltas = partials(
        layout, Events(np.zeros(len(chosen), np.int64), time, time, ranks, {"v": (value, present)})
    )
    reached = {e[3]: offsets[i] + 1 for i, e in chosen}
    return state_of(layout, deltas[0], reached) if deltas else None


def answered(arrivals: list[Arrival], reads: list[Read]) -> tuple[list[list[Any]], list[list[int]]]:
    """Per read the online values and their applied offsets."""
    layout = TileLayout(AGGREGATIONS, TILE)
    states = [state_after(layout, arrivals, origin, count) for origin, _, count in reads]
    read = TileReader(layout).read(states, microseconds([r[1] for r in reads]))
    bounds, pairs = positions_of(states)
    applied = [pairs[bounds[i] : bounds[i + 1]].ravel().tolist() for i in range(len(reads))]
    return rows_of(read.columns, len(reads)), applied


def recomputed(arrivals: list[Arrival], reads: list[Read], applied: list[list[int]]) -> pl.DataFrame:
    events = pl.DataFrame(
        {
            "origin": [e[0] for e in arrivals],
            "t": [at(e[1]) for e in arrivals],
            "v": [e[2] for e in arrivals],
            "id": [f"e{i}" for i in range(len(arrivals))],
            "partition": [e[3] for e in arrivals],
            "offset": offsets_of(arrivals),
        },
        schema={
            "origin": pl.String,
            "t": UTC_MICROSECONDS,
            "v": pl.Float64,
            "id": pl.String,
            "partition": pl.Int32,
            "offset": pl.Int64,
        },
    )
    spine = pl.DataFrame(
        {"origin": [r[0] for r in reads], "at": [at(r[1]) for r in reads]},
        schema={"origin": pl.String, "at": pl.Datetime("us", "UTC")},
    )
    stream = Stream(events, ["origin"], "t", None, "id", "partition", "offset")
    lists = pl.Series(applied, dtype=pl.List(pl.Int64))
    return applied_features(spine, lists, stream, spine_time="at", tile=TILE, features=FEATURES)


def assert_agree(arrivals: list[Arrival], reads: list[Read]) -> None:
    online, applied = answered(arrivals, reads)
    offline = recomputed(arrivals, reads, applied)
    assert offline.height == len(reads)
    for row, expected in enumerate(online):
        names = [a.name for a in AGGREGATIONS]
        differing = [
            x for x in zip(names, expected, offline.row(row), strict=True) if not is_close(x[1], x[2])
        ]
        assert not differing


@settings(max_examples=200, deadline=None)
@given(arrivals=arrivals_of, reads=reads_of)
# The second event arrived after the read, for a tile that had ended.
@example(arrivals=[("JFK", 0, 0.0, 0), ("JFK", 0, 1.0, 0)], reads=[("JFK", 5, 1)])
@example(
    arrivals=[("JFK", -5, 3.0, 0), ("JFK", 0, 2.0, 0), ("JFK", 2, 1.0, 0)],
    reads=[("JFK", 60, 2), ("JFK", 5, 1)],
)
def test_offline_windows_equal_online_answers_at_any_lag(arrivals: list[Arrival], reads: list[Read]) -> None:
    assert_agree(arrivals, reads)


@pytest.mark.parametrize("at_once", [1, 7])
def test_windows_with_holes_are_recomputed_in_chunks(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(applied_windows, "MAX_PAIRS", at_once)
    late: list[Arrival] = [("JFK", (37 * i) % 60, float(i), i % 2) for i in range(30)]
    assert_agree(late, [("JFK", 60, count) for count in range(31)])


def test_only_events_applied_at_the_answer_count() -> None:
    arrivals: list[Arrival] = [("JFK", 10, 1.0, 0), ("JFK", 14, 10.0, 0), ("JFK", 11, 100.0, 0)]
    # As of minute 12, the current tile holds minutes 10 … 14.
    offline = recomputed(arrivals, [("JFK", 12, 0)] * 4, applied=[[], [0, 1], [0, 2], [0, 3]])
    assert offline["SUM_5"].to_list() == [None, 1.0, 11.0, 111.0]
    assert offline["COUNT_5"].to_list() == [None, 1, 2, 3]
    assert offline["LAST_5"].to_list() == [None, 1.0, 10.0, 10.0]


def test_answers_are_recomputed_after_the_store_lost_events() -> None:
    arrivals: list[Arrival] = [("JFK", 10, 1.0, 0), ("JFK", 10, 10.0, 1), ("JFK", 10, 100.0, 0)]
    applied = [[0, 1], [0, 1, 1, 1], [1, 1], [1, 1, 0, 2]]
    offline = recomputed(arrivals, [("JFK", 12, 0)] * 4, applied)
    assert offline["SUM_5"].to_list() == [1.0, 11.0, 10.0, 111.0]


def test_a_stale_entity_has_no_values() -> None:
    events = pl.DataFrame(
        {
            "origin": ["JFK", "JFK"],
            "t": [at(0), at(20)],
            "v": [1.0, 2.0],
            "id": ["e0", "e1"],
            "partition": [0, 0],
            "offset": [0, 1],
        }
    )
    spine = pl.DataFrame({"origin": ["JFK", "JFK"], "at": [at(31)] * 2})
    stream = Stream(events, ["origin"], "t", None, "id", "partition", "offset")
    answer = applied_features(
        spine,
        pl.Series([[0, 1], [0, 2]]),
        stream,
        spine_time="at",
        tile=TILE,
        ttl=30 * MINUTE,
        features=FEATURES,
    )
    assert answer["SUM_60"].to_list() == [None, 3.0]
