"""Integers that no double holds come out of windows as they went in: from tiles merged in memory and inside Redis, and from history."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flywheel_feature.definitions.model import (
    HOUR,
    SECOND,
    Aggregation,
    DataType,
    Feature,
    Field,
    Source,
    StreamSource,
    StreamView,
    View,
)
from flywheel_feature.definitions.model import AggregationFunction as F
from flywheel_feature.fakes.online import MemoryOnlineStore
from flywheel_feature.ingest.source_rows import SourceRows
from flywheel_feature.ingest.stream_tiles import ViewTiles
from flywheel_feature.offline.joins.windows import WindowFeature, windowed_features
from flywheel_feature.store.redis.connection import RedisPipe
from flywheel_feature.store.redis.online_store import OnlineStore
from flywheel_feature.windows.aggregations import feature_type
from flywheel_feature.windows.event_order import event_ranks
from flywheel_feature.windows.tile_reading import TileReader

MINUTE = 60 * SECOND
TILE = 10 * MINUTE
EPOCH = datetime(2013, 1, 1, tzinfo=UTC)
START = round(EPOCH.timestamp()) * 1_000_000
KEY = Field("device", DataType.STRING)
SCHEMA = (KEY, Field("at", DataType.TIMESTAMP), Field("n", DataType.INT64))
SOURCE = Source("default", "events", SCHEMA, "at", "", StreamSource())
AGGREGATIONS = tuple(
    Aggregation(f"{f.name}_{w}", f, "n", w, 3)
    for f in (F.LAST, F.FIRST, F.LAST_N, F.COUNT)
    for w in (HOUR, 4 * HOUR)
)
KINDS = [feature_type(a.function, DataType.INT64) for a in AGGREGATIONS]

EDGES = [
    0, -1, 1, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63), 2**63 - 2, 1 - 2**63,
    # Read as doubles: infinities, NaN that signals, NaN that is quiet, the smallest number, minus zero's neighbour.
    0x7FF0 << 48, -(0x0010 << 48), (0x7FF0 << 48) + 1, (0x7FF8 << 48) + 5, -(2**63) + 1,
]  # fmt: skip
NUMBERS = st.one_of(
    st.sampled_from(EDGES),
    st.integers(2**63 - 1000, 2**63 - 1),
    st.integers(-(2**63), -(2**63) + 1000),
    st.integers(-(2**63), 2**63 - 1),
)
EVENTS = st.lists(st.tuples(st.integers(0, 5 * 60), st.one_of(st.none(), NUMBERS)), min_size=1, max_size=30)


def rows_of(events: list[Any], low: int, high: int) -> SourceRows:
    part = events[low:high]
    everywhere = np.ones(len(part), np.bool_)
    columns = {
        "device": (np.array(["A"] * len(part), dtype=object), everywhere),
        "at": (np.array([START + minute * MINUTE for minute, _ in part], np.int64), everywhere),
        "n": (
            np.array([n or 0 for _, n in part], np.int64),
            np.array([n is not None for _, n in part], np.bool_),
        ),
    }
    ids = [f"e{i}" for i in range(low, high)]
    return SourceRows(SOURCE, 0, columns, ids, np.arange(low, high, dtype=np.int64), high)


def brute_force(events: list[Any], minute: int) -> list[Any]:
    ranks = event_ranks([f"e{i}" for i in range(len(events))]).tolist()
    found: list[Any] = []
    for aggregation in AGGREGATIONS:
        low = minute * MINUTE // TILE - aggregation.window // TILE + 1
        window = [
            n
            for t, _, n in sorted((t, r, n) for (t, n), r in zip(events, ranks, strict=True) if n is not None)
            if t * MINUTE // TILE >= low
        ]
        if aggregation.function == F.COUNT:
            found.append(len(window))
        elif not window:
            found.append(None)
        else:
            found.append(
                {F.LAST: window[-1], F.FIRST: window[0], F.LAST_N: window[::-1][:3]}[aggregation.function]
            )
    return found


def from_history(events: list[Any], minute: int) -> list[Any]:
    frame = pl.DataFrame(
        {
            "device": ["A"] * len(events),
            "t": [EPOCH + timedelta(minutes=t) for t, _ in events],
            "n": [n for _, n in events],
            "id": [f"e{i}" for i in range(len(events))],
        },
        schema={"device": pl.String, "t": pl.Datetime("us", "UTC"), "n": pl.Int64, "id": pl.String},
    )
    asked = pl.DataFrame({"device": ["A"], "at": [EPOCH + timedelta(minutes=minute)]}).cast(
        {"at": pl.Datetime("us", "UTC")}
    )
    features = [
        WindowFeature(a.name, a.function, a.field, a.window, kind, a.limit)
        for a, kind in zip(AGGREGATIONS, KINDS, strict=True)
    ]
    answer = windowed_features(
        asked, frame, keys=["device"], spine_time="at", event_time="t", event_id="id", tile=TILE, features=features
    )  # fmt: skip
    return list(answer.row(0))[:-1]


async def online(store: Any, events: list[Any], cuts: list[int], minute: int) -> list[Any]:
    features = tuple(Feature(a.name, k) for a, k in zip(AGGREGATIONS, KINDS, strict=True))
    name = f"v{uuid.uuid4().hex[:12]}"
    view = View(
        "default", name, "device", StreamView("events", AGGREGATIONS, "", TILE), version=1, features=features
    )
    tiles = ViewTiles(view, (KEY,), SCHEMA)
    edges = sorted({0, len(events), *(c for c in cuts if c < len(events))})
    for low, high in pairwise(edges):
        await tiles.apply(rows_of(events, low, high), store, 1)
    states = await store.read([f"default/{name}@1{{1:A}}".encode()])
    columns = TileReader(tiles.layout).read(states, np.array([START + minute * MINUTE], np.int64)).columns
    assert {np.dtype(np.int64), np.dtype(object)} == {values.dtype for values, _ in columns}
    row = [values[0] if valid[0] else None for values, valid in columns]
    return [v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for v in row]


@pytest.mark.parametrize("kind", ["memory", "redis"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EVENTS, st.lists(st.integers(1, 29), max_size=5))
@example([(0, n) for n in EDGES], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
@example([(11 * i % 60, n) for i, n in enumerate(EDGES)], [5, 9])
def test_whole_numbers_near_the_ends_of_their_range_are_exact_online_and_offline(
    redis_url: str, kind: str, events: list[Any], cuts: list[int]
) -> None:
    minute = max(t for t, _ in events)

    async def merged() -> list[Any]:
        if kind == "memory":
            return await online(MemoryOnlineStore(), events, cuts, minute)
        pipe = RedisPipe(redis_url)
        try:
            return await online(OnlineStore(pipe), events, cuts, minute)
        finally:
            await pipe.close()

    expected = brute_force(events, minute)
    assert expected == asyncio.run(merged())
    assert expected == from_history(events, minute)
