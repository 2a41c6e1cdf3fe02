"""Aggregates read from tiles equal the same aggregates computed from the events."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_feature.definitions.model import DAY, HOUR, SECOND, Aggregation
from flywheel_feature.definitions.model import AggregationFunction as F
from flywheel_feature.windows.aggregations import choose_tile, default_name
from flywheel_feature.windows.event_order import event_ranks
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_reading import TileReader
from flywheel_feature.windows.tile_writing import Events, partials, state_of

TILE = 600 * SECOND
WINDOWS = (HOUR, 6 * HOUR)
AGGREGATIONS = [
    Aggregation(f"{function.name}_{window}", function, "x", window, 3)
    for function in F
    if function != F.APPROX_DISTINCT
    for window in WINDOWS
] + [Aggregation("events", F.COUNT, "", HOUR), Aggregation("last_y", F.LAST, "y", 6 * HOUR)]

EVENT = st.tuples(
    st.integers(0, 2),
    st.integers(0, 8 * 60).map(lambda m: 1_357_000_000 * SECOND + m * 60 * SECOND),
    st.one_of(st.none(), st.integers(-50, 50).map(float), st.floats(-1e3, 1e3)),
    st.one_of(st.none(), st.integers(0, 3).map(float)),
)


def arrays(events: list[tuple[int, int, float | None, float | None]], ids: list[str]) -> Events:
    def column(i: int) -> Any:
        raw = [e[i] for e in events]
        return np.array([0.0 if v is None else v for v in raw]), np.array([v is not None for v in raw], bool)

    times = np.array([e[1] for e in events], np.int64)
    return Events(
        np.array([e[0] for e in events], np.int64),
        times,
        times,
        event_ranks(ids),
        {"x": column(2), "y": column(3)},
    )


def expected(aggregation: Aggregation, events: list[Any], ranks: list[int], entity: int, as_of: int) -> Any:
    """The value by the definition of a window, event by event."""
    inside = []
    for event, rank in zip(events, ranks, strict=True):
        tile = event[1] // TILE
        if event[0] == entity and (as_of - aggregation.window) // TILE + 1 <= tile <= as_of // TILE:
            inside.append((event[1], rank, event))
    inside.sort(key=lambda e: e[:2])
    if aggregation.function == F.COUNT and not aggregation.field:
        return len(inside)
    values = [e[2][2 if aggregation.field == "x" else 3] for e in inside]
    values = [v for v in values if v is not None]
    if aggregation.function == F.COUNT:
        return len(values)
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    match aggregation.function:
        case F.SUM:
            return math.fsum(values)
        case F.MEAN:
            return mean
        case F.MIN:
            return min(values)
        case F.MAX:
            return max(values)
        case F.STD:
            return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
        case F.LAST:
            return values[-1]
        case F.FIRST:
            return values[0]
        case _:
            return values[::-1][: aggregation.limit]


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENT, max_size=60), st.integers(0, 60))
def test_reads_equal_a_brute_force_oracle(events: list[Any], minutes_after: int) -> None:
    layout = TileLayout(AGGREGATIONS, TILE)
    as_of = max((e[1] for e in events), default=1_357_000_000 * SECOND) + minutes_after * 60 * SECOND
    ids = [f"event-{i}" for i in range(len(events))]
    deltas = partials(layout, arrays(events, ids))
    states = [state_of(layout, deltas[e], {0: 1}) if e in deltas else None for e in range(3)]
    read = TileReader(layout).read(states, np.full(3, as_of))
    ranks = event_ranks(ids).tolist()
    seen = {e[0] for e in events}
    assert [e in seen for e in range(3)] == read.found.tolist()
    for aggregation, (values, valid) in zip(AGGREGATIONS, read.columns, strict=True):
        for entity in seen:
            want = expected(aggregation, events, ranks, entity, as_of)
            if want is None:
                assert not valid[entity], aggregation.name
            elif isinstance(want, list):
                assert values[entity].tolist() == want, aggregation.name
            else:
                assert valid[entity], aggregation.name
                assert values[entity] == pytest.approx(want, rel=1e-9, abs=1e-7), aggregation.name


def test_a_window_after_all_events_counts_zero_and_has_no_mean() -> None:
    layout = TileLayout([Aggregation("n", F.COUNT, "", HOUR), Aggregation("m", F.MEAN, "x", HOUR)], TILE)
    events = Events(
        np.zeros(1, np.int64),
        np.array([HOUR]),
        np.array([HOUR]),
        np.zeros(1, np.int64),
        {"x": (np.array([4.0]), np.array([True]))},
    )
    state = state_of(layout, partials(layout, events)[0], {0: 1})
    read = TileReader(layout).read([state, state], np.array([HOUR, 3 * HOUR]))
    (count, counted), (mean, has_mean) = read.columns
    assert count.tolist() == [1, 0] and counted.tolist() == [True, True]
    assert mean[0] == 4.0 and has_mean.tolist() == [True, False]


def test_the_default_tile_cuts_every_window_into_at_least_12() -> None:
    assert choose_tile([HOUR, 3 * HOUR]) == 300 * SECOND
    assert choose_tile([DAY, 7 * DAY]) == 2 * HOUR
    assert choose_tile([6 * HOUR]) == 1800 * SECOND
    assert choose_tile([300 * SECOND]) == 15 * SECOND


def test_default_names_have_function_field_and_window() -> None:
    assert default_name(F.MEAN, "dep_delay", 7 * DAY) == "mean_dep_delay_7d"
    assert default_name(F.COUNT, "", 90 * 60 * SECOND) == "count_90m"
