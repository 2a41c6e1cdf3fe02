"""Offline values at a time equal the values that the online store returned at that time."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flywheel_feature.definitions.model import Aggregation, AggregationFunction
from flywheel_feature.offline.joins.windows import WindowFeature, windowed_features
from flywheel_feature.windows.aggregations import feature_type
from flywheel_feature.windows.event_order import event_ranks
from flywheel_feature.windows.hyperloglog import observations
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_reading import TileReader
from flywheel_feature.windows.tile_writing import Events, partials, state_of
from tests.support.builders.feature_units import MINUTE, at, float_column, is_close, microseconds, rows_of

F = AggregationFunction
TILE = 5 * MINUTE
AGGREGATIONS = [
    Aggregation(
        f"{function.name}_{window}", function, "" if function == F.COUNT else "v", window * MINUTE, limit=3
    )
    for window in (5, 15, 60)
    for function in (F.COUNT, F.SUM, F.MEAN, F.MIN, F.MAX, F.STD, F.LAST, F.FIRST, F.LAST_N)
] + [
    Aggregation("values", F.COUNT, "v", 15 * MINUTE),
    Aggregation("different", F.APPROX_DISTINCT, "v", 15 * MINUTE),
    Aggregation("different_long", F.APPROX_DISTINCT, "v", 60 * MINUTE),
]

events_of = st.lists(
    st.tuples(
        st.sampled_from(["JFK", "LGA"]),
        st.integers(-30, 120),
        st.one_of(st.none(), st.floats(-1000, 1000).map(lambda x: round(x, 2))),
    ),
    max_size=25,
)


def online(events: list[Any], origin: str, minute: int, *, later: bool = False) -> list[Any]:
    """The values of an entity at a minute, from a state with exactly the events up to then, or also with
    the later ones."""
    layout = TileLayout(AGGREGATIONS, TILE)
    chosen = [(i, e) for i, e in enumerate(events) if e[0] == origin and (later or e[1] <= minute)]
    count = len(chosen)
    time = microseconds([e[1] for _, e in chosen])
    value, present = float_column([e[2] for _, e in chosen])
    batch = Events(
        np.zeros(count, np.int64),
        time,
        time,
        event_ranks([f"e{i}" for i, _ in chosen]),
        {"v": (value, present)},
        {"v": observations(value)},
    )
    deltas = partials(layout, batch)
    state = state_of(layout, deltas[0], {0: count}) if deltas else None
    values = TileReader(layout).read([state], microseconds([minute]))
    return rows_of(values.columns, 1)[0]


def offline(events: list[Any], spine: list[Any]) -> list[list[Any]]:
    """The values per spine row."""
    frame = pl.DataFrame(
        {
            "origin": [e[0] for e in events],
            "t": [at(e[1]) for e in events],
            "v": [e[2] for e in events],
            "id": [f"e{i}" for i in range(len(events))],
        },
        schema={"origin": pl.String, "t": pl.Datetime("us", "UTC"), "v": pl.Float64, "id": pl.String},
    )
    spine_frame = pl.DataFrame(
        {"origin": [s[0] for s in spine], "at": [at(s[1]) for s in spine]},
        schema={"origin": pl.String, "at": pl.Datetime("us", "UTC")},
    )
    features = [
        WindowFeature(a.name, a.function, a.field, a.window, feature_type(a.function), a.limit)
        for a in AGGREGATIONS
    ]
    found = windowed_features(
        spine_frame,
        frame,
        keys=["origin"],
        spine_time="at",
        event_time="t",
        event_id="id",
        tile=TILE,
        features=features,
    )
    return [list(row)[:-1] for row in found.iter_rows()]


def assert_agree(online: list[Any], offline: list[Any]) -> None:
    pairs = zip(AGGREGATIONS, online, offline, strict=True)
    assert [] == [(a.name, x, y) for a, x, y in pairs if not is_close(x, y)]


@settings(max_examples=150, deadline=None)
@given(
    events=events_of,
    spine=st.lists(st.tuples(st.sampled_from(["JFK", "LGA"]), st.integers(-30, 130)), max_size=6),
)
def test_offline_values_equal_online_values(events: list[Any], spine: list[Any]) -> None:
    for (origin, minute), actual in zip(spine, offline(events, spine), strict=True):
        assert_agree(online(events, origin, minute), actual)


# A state keeps more entries of LAST and LAST_N than these events, and reads at the ends of tiles.
@settings(max_examples=150, deadline=None)
@given(
    events=events_of.map(lambda events: events[:8]),
    spine=st.lists(st.tuples(st.sampled_from(["JFK", "LGA"]), st.integers(-6, 26)), max_size=6),
)
@example(events=[("JFK", 60, 1.0)], spine=[("JFK", 0)])
@example(events=[("JFK", 60, 1.0), ("JFK", -30, 2.0)], spine=[("JFK", 10)])
def test_values_before_later_events_equal_offline_values(events: list[Any], spine: list[Any]) -> None:
    spine = [(origin, 5 * tile + 4) for origin, tile in spine]
    for (origin, minute), actual in zip(spine, offline(events, spine), strict=True):
        assert_agree(online(events, origin, minute, later=True), actual)
