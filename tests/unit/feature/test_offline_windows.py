"""Offline windowed aggregations against an oracle that visits every event of every tile."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_feature.definitions.model import AggregationFunction as Function
from flywheel_feature.offline.joins import windows as windows_module
from flywheel_feature.offline.joins.windows import WindowFeature, windowed_features
from flywheel_feature.windows.event_order import event_ranks
from tests.support.builders.feature_units import MINUTE, UTC_MICROSECONDS, at

INT64, FLOAT64, STRING, FLOAT64_LIST = 2, 4, 5, 15

TILE = 5
WINDOWS = (5, 15, 60)
NUMERIC = [
    (Function.SUM, "delay", FLOAT64),
    (Function.MEAN, "delay", FLOAT64),
    (Function.MIN, "delay", FLOAT64),
    (Function.MAX, "delay", FLOAT64),
    (Function.STD, "delay", FLOAT64),
    (Function.COUNT, "delay", INT64),
    (Function.COUNT, "", INT64),
    (Function.SUM, "seats", INT64),
    (Function.LAST, "delay", FLOAT64),
    (Function.FIRST, "plane", STRING),
    (Function.LAST_N, "delay", FLOAT64_LIST),
]
FEATURES = [
    WindowFeature(
        f"{function.name.lower()}_{field}_{window}", function, field, window * MINUTE, kind, limit=3
    )
    for window in WINDOWS
    for function, field, kind in NUMERIC
]


def events_frame(events: list[Any]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "origin": pl.Series([e[0] for e in events], dtype=pl.String),
            "landed": pl.Series([at(e[1]) for e in events], dtype=UTC_MICROSECONDS),
            "recorded": pl.Series(
                [None if e[2] is None else at(e[1] + e[2]) for e in events], dtype=UTC_MICROSECONDS
            ),
            "delay": pl.Series([e[3] for e in events], dtype=pl.Float64),
            "seats": pl.Series([e[4] for e in events], dtype=pl.Int64),
            "plane": pl.Series([e[5] for e in events], dtype=pl.String),
            "__event_id": pl.Series([f"{(7 * i) % 31:02d}-{i}" for i in range(len(events))], dtype=pl.String),
        }
    )


def spine_frame(spine: list[Any]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "origin": pl.Series([s[0] for s in spine], dtype=pl.String),
            "t": pl.Series([at(s[1]) for s in spine], dtype=UTC_MICROSECONDS),
        }
    )


def oracle(
    spine: list[Any], events: list[Any], feature: WindowFeature, known_at: bool, ttl: int | None
) -> list[Any]:
    column = {"delay": 3, "seats": 4, "plane": 5}
    answers: list[Any] = []
    for origin, t in spine:
        rows = []
        for i, event in enumerate(events):
            if event[0] != origin or origin is None or t is None or event[1] > t:
                continue
            known = event[1] + max(event[2] or 0, 0) if known_at else event[1]
            if known <= t:
                rows.append((event[1], known, int(event_ranks([f"{(7 * i) % 31:02d}-{i}"])[0]), event))
        rows.sort(key=lambda r: r[:3])
        if not rows or (ttl is not None and t - rows[-1][0] > ttl):
            answers.append(None)
            continue
        window = feature.window // MINUTE
        tiles = range((t - window) // TILE + 1, t // TILE + 1)
        inside = [r[3] for r in rows if r[0] // TILE in tiles]
        values = (
            [e[column[feature.field]] for e in inside if e[column[feature.field]] is not None]
            if feature.field
            else inside
        )
        answers.append(aggregate(feature, values))
    return answers


def aggregate(feature: WindowFeature, values: list[Any]) -> Any:
    if feature.function == Function.COUNT:
        return len(values)
    if not values:
        return None
    match feature.function:
        case Function.SUM:
            return math.fsum(values)
        case Function.MEAN:
            return math.fsum(values) / len(values)
        case Function.MIN:
            return min(values)
        case Function.MAX:
            return max(values)
        case Function.STD:
            mean = math.fsum(values) / len(values)
            return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
        case Function.LAST:
            return values[-1]
        case Function.FIRST:
            return values[0]
        case Function.LAST_N:
            return values[::-1][: feature.limit]
    raise AssertionError(feature)


def same(expected: Any, actual: Any) -> bool:
    if isinstance(expected, float) and isinstance(actual, float):
        return math.isclose(expected, actual, rel_tol=1e-6, abs_tol=1e-7)
    return bool(expected == actual)


origins = st.sampled_from(["JFK", "LGA", None])
events_of = st.lists(
    st.tuples(
        origins,
        st.integers(-20, 100),
        st.one_of(st.none(), st.integers(-3, 20)),
        st.one_of(st.none(), st.floats(-1000, 1000).map(lambda x: round(x, 3))),
        st.one_of(st.none(), st.integers(-(2**40), 2**40)),
        st.one_of(st.none(), st.sampled_from(["N1", "N2", "N3"])),
    ),
    max_size=30,
)
spines = st.lists(
    st.tuples(st.sampled_from(["JFK", "LGA", "EWR", None]), st.one_of(st.none(), st.integers(-20, 130))),
    max_size=15,
)


@settings(max_examples=250, deadline=None)
@given(
    spine=spines,
    events=events_of,
    known_at=st.booleans(),
    ttl=st.one_of(st.none(), st.integers(1, 40)),
    pairs=st.sampled_from([5, 4_000_000]),
)
def test_windows_equal_a_brute_force_oracle(
    spine: list[Any], events: list[Any], known_at: bool, ttl: int | None, pairs: int
) -> None:
    default, windows_module.MAX_PAIRS = windows_module.MAX_PAIRS, pairs
    try:
        answer = windowed_features(
            spine_frame(spine),
            events_frame(events),
            keys=["origin"],
            spine_time="t",
            event_time="landed",
            created_time="recorded" if known_at else None,
            event_id="__event_id",
            tile=TILE * MINUTE,
            ttl=(ttl or 0) * MINUTE,
            features=FEATURES,
        )
    finally:
        windows_module.MAX_PAIRS = default
    for feature in FEATURES:
        expected = oracle(
            spine, [e if known_at else (*e[:2], None, *e[3:]) for e in events], feature, known_at, ttl
        )
        actual = answer[feature.name].to_list()
        assert len(expected) == len(actual)
        assert all(map(same, expected, actual)), (feature.name, expected, actual)


def count_at(spine_minute: float, event_minutes: list[float], window: int = 15) -> list[Any]:
    frame = pl.DataFrame(
        {
            "origin": ["JFK"] * len(event_minutes),
            "landed": [at(m) for m in event_minutes],
        },
        schema={"origin": pl.String, "landed": UTC_MICROSECONDS},
    )
    spine = pl.DataFrame(
        {"origin": ["JFK"], "t": [at(spine_minute)]},
        schema={"origin": pl.String, "t": UTC_MICROSECONDS},
    )
    feature = WindowFeature("n", Function.COUNT, "", window * MINUTE, INT64)
    return windowed_features(
        spine,
        frame,
        keys=["origin"],
        spine_time="t",
        event_time="landed",
        tile=5 * MINUTE,
        features=[feature],
    )["n"].to_list()


@pytest.mark.parametrize(
    ("spine", "event", "counted"),
    [
        (20, 20, 1),  # an event at the time of the spine counts
        (20, 20.001, None),  # a later one does not, and nothing else is known of the entity
        (20, 10, 1),  # tiles 2, 3 and 4 are in the window of 15 minutes at 20
        (20, 9.999, 0),
        (24.999, 10, 1),  # until the next tile begins
        (25, 10, 0),
    ],
)
def test_edges_of_a_window_are_edges_of_tiles(spine: float, event: float, counted: int | None) -> None:
    assert [counted] == count_at(spine, [event])


def test_the_standard_deviation_has_no_cancellation_error() -> None:
    values = [1e9 + 0.1, 1e9 + 0.2, 1e9 + 0.3, 1e9 + 0.4]
    frame = pl.DataFrame(
        {"origin": ["JFK"] * 4, "landed": [at(m) for m in (0, 4, 6, 11)], "v": values},
        schema={"origin": pl.String, "landed": UTC_MICROSECONDS, "v": pl.Float64},
    )
    spine = pl.DataFrame(
        {"origin": ["JFK"], "t": [at(12)]}, schema={"origin": pl.String, "t": UTC_MICROSECONDS}
    )
    feature = WindowFeature("s", Function.STD, "v", 60 * MINUTE, FLOAT64)
    answer = windowed_features(
        spine,
        frame,
        keys=["origin"],
        spine_time="t",
        event_time="landed",
        tile=5 * MINUTE,
        features=[feature],
    )
    assert answer["s"][0] == pytest.approx(0.1118033, rel=1e-5)
