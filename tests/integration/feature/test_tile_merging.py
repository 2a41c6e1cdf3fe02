"""Tiles merged in Redis equal tiles computed at once, for any batches, order and repetitions."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
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
from flywheel_feature.definitions.model import (
    AggregationFunction as F,
)
from flywheel_feature.encoding.row_encoding import RowLayout
from flywheel_feature.ingest.source_rows import SourceRows
from flywheel_feature.ingest.stream_tiles import ViewTiles
from flywheel_feature.ingest.tile_store import PositionLost
from flywheel_feature.store.redis.connection import RedisPipe
from flywheel_feature.store.redis.online_store import OnlineStore
from flywheel_feature.windows.aggregations import feature_type
from flywheel_feature.windows.event_order import event_ranks
from flywheel_feature.windows.hyperloglog import observations
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_reading import TileReader
from flywheel_feature.windows.tile_writing import Events, partials, state_of

TILE = 600 * SECOND
START = 1_357_000_000 * SECOND
KEY = Field("airport", DataType.STRING)
SCHEMA = (KEY, Field("at", DataType.TIMESTAMP), Field("x", DataType.FLOAT64), Field("s", DataType.STRING))
SOURCE = Source("default", "events", SCHEMA, "at", "", StreamSource())
AGGREGATIONS = (
    *(Aggregation(f"{f.name}_{w}", f, "x", w, 3) for f in F for w in (HOUR, 4 * HOUR)),
    *(
        Aggregation(f"s_{f.name}", f, "s", 4 * HOUR, 3)
        for f in (F.LAST, F.LAST_N, F.APPROX_DISTINCT, F.COUNT)
    ),
)
FEATURES = tuple(
    Feature(a.name, feature_type(a.function, DataType.STRING if a.field == "s" else DataType.FLOAT64))
    for a in AGGREGATIONS
)

EVENT = st.tuples(
    st.sampled_from("AB"),
    st.integers(0, 5 * 60),
    st.one_of(st.none(), st.integers(-20, 20).map(float)),
    st.integers(0, 1),
    st.one_of(st.none(), st.sampled_from(["", "a", "äöü", "long" * 9])),
)


def rows_of(events: list[Any], partition: int, low: int, high: int) -> SourceRows:
    """Events of a partition with low <= offset < high; the offset is the position in the partition."""
    mine = [(i, e) for i, e in enumerate([e for e in events if e[3] == partition]) if low <= i < high]
    airports = np.array([e[0] for _, e in mine], dtype=object)
    times = np.array([START + e[1] * 60 * SECOND for _, e in mine], np.int64)
    x = np.array([0.0 if e[2] is None else e[2] for _, e in mine], np.float64)
    valid = np.array([e[2] is not None for _, e in mine], bool)
    all_valid = np.ones(len(mine), bool)
    texts = np.array([*(e[4] or "" for _, e in mine), None], dtype=object)[:-1]
    named = np.array([e[4] is not None for _, e in mine], bool)
    columns = {
        "airport": (airports, all_valid),
        "at": (times, all_valid),
        "x": (x, valid),
        "s": (texts, named),
    }
    ids = [f"{partition}-{i}" for i, _ in mine]
    return SourceRows(SOURCE, partition, columns, ids, np.array([i for i, _ in mine], np.int64), high)


def at_once(layout: TileLayout, sent: list[Any]) -> list[bytes | None]:
    parts = [rows_of(sent, p, 0, len(sent)) for p in (0, 1)]
    airport = np.concatenate([p.columns["airport"][0] for p in parts])
    code = np.array([0 if a == "A" else 1 for a in airport], np.int64)
    time = np.concatenate([p.columns["at"][0] for p in parts])
    rank = event_ranks([i for p in parts for i in p.event_ids])
    x = tuple(np.concatenate([p.columns["x"][k] for p in parts]) for k in (0, 1))
    texts = np.concatenate([p.columns["s"][0] for p in parts])
    raw = np.array([*(t.encode() for t in texts), None], dtype=object)[:-1]
    named = np.concatenate([p.columns["s"][1] for p in parts])
    lengths = np.array([len(t) for t in raw], np.float64)
    observed = {"x": observations(x[0]), "s": observations(texts)}
    values: dict[str, Any] = {"x": x, "s": (lengths, named)}
    events = Events(code, time, time, rank, values, observed, {"s": raw})
    deltas = partials(layout, events)
    return [state_of(layout, deltas[c], {}) if c in deltas else None for c in (0, 1)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(EVENT, min_size=1, max_size=50),
    st.lists(st.tuples(st.integers(0, 49), st.integers(1, 50)), max_size=6),
)
def test_any_batches_and_repetitions_give_the_same_windows(
    redis_url: str, events: list[Any], repeats: list[tuple[int, int]]
) -> None:
    view = View(
        "default",
        f"v{uuid.uuid4().hex[:12]}",
        "airport",
        StreamView("events", AGGREGATIONS, "", TILE),
        version=1,
        features=FEATURES,
    )
    tiles = ViewTiles(view, (KEY,), SCHEMA)
    as_of = np.full(2, START + max(e[1] for e in events) * 60 * SECOND, np.int64)

    async def merged() -> list[bytes | None]:
        pipe = RedisPipe(redis_url)
        store = OnlineStore(pipe)
        for partition in (0, 1):
            total = sum(e[3] == partition for e in events)
            # Ranges that overlap applied ones, as after a crash, then the rest.
            reached = 0
            for low, size in [*repeats, (0, total)]:
                low = min(low, reached)
                reached = max(reached, min(total, low + size))
                await tiles.apply(rows_of(events, partition, low, min(total, low + size)), store, 1)
        prefix = f"default/{view.id}@1{{1:".encode()
        found = await store.read([prefix + b"A}", prefix + b"B}"])
        await pipe.close()
        return found

    got = TileReader(tiles.layout).read(asyncio.run(merged()), as_of)
    want = TileReader(tiles.layout).read(at_once(tiles.layout, events), as_of)
    assert got.found.tolist() == want.found.tolist()
    assert got.newest.tolist() == want.newest.tolist()
    for aggregation, (values, valid), (expected, present) in zip(
        AGGREGATIONS, got.columns, want.columns, strict=True
    ):
        assert valid.tolist() == present.tolist(), aggregation.name
        for row in np.flatnonzero(present):
            if aggregation.field == "s":
                assert list(np.atleast_1d(values[row])) == list(np.atleast_1d(expected[row])), (
                    aggregation.name
                )
                continue
            np.testing.assert_allclose(
                values[row], expected[row], rtol=1e-9, atol=1e-9, err_msg=aggregation.name
            )


async def test_the_newest_row_by_event_time_created_time_and_order_wins(
    redis_url: str,
) -> None:
    layout = RowLayout([Feature("x", DataType.FLOAT64)])
    store = OnlineStore(pipe := RedisPipe(redis_url))
    versions = [(5, 5, 1.0), (7, 7, 2.0), (6, 9, 3.0), (7, 8, 4.0), (7, 7, 5.0), (7, 8, 6.0)]
    rows = layout.encode(
        {"x": (np.array([v[2] for v in versions]), np.ones(len(versions), bool))},
        np.array([v[0] for v in versions], np.int64),
        np.array([v[1] for v in versions], np.int64),
    )
    assert await store.write_rows([b"k"] * len(rows), rows, 0) == 4
    assert await store.write_rows([b"k"], [rows[-1]], 0) == 0
    decoded = layout.decode(await store.read([b"k", b"absent"]))
    assert decoded.columns[0][0].tolist() == [6.0, 0.0]
    assert decoded.found.tolist() == [True, False]
    await pipe.close()


async def test_a_state_of_an_older_generation_is_ignored_and_of_a_newer_one_kept(
    redis_url: str,
) -> None:
    kind = StreamView("events", AGGREGATIONS, "", TILE)
    view = View("default", "generations", "airport", kind, version=1, features=FEATURES)
    tiles = ViewTiles(view, (KEY,), SCHEMA)
    events = [("A", i, float(i), 0, None) for i in range(10)]
    store = OnlineStore(pipe := RedisPipe(redis_url))
    as_of = np.full(1, START + 600 * SECOND, np.int64)

    async def count() -> list[int]:
        states = await store.read([b"default/generations@1{1:A}"])
        values = dict(
            zip(
                (a.name for a in AGGREGATIONS),
                TileReader(tiles.layout).read(states, as_of).columns,
                strict=True,
            )
        )
        return values[f"COUNT_{HOUR}"][0].tolist()

    # Redis lost its data, and an unaware member wrote events 6 to 9 as if the earlier ones were applied.
    await tiles.apply(rows_of(events, 0, 6, 10), store, 1)
    assert await count() == [4]
    await tiles.apply(rows_of(events, 0, 0, 10), store, 2)
    assert await count() == [10]
    with pytest.raises(PositionLost):
        await tiles.apply(rows_of(events, 0, 6, 10), store, 1)
    assert await count() == [10]
    # Positions also belong to a generation.
    assert await store.take_positions("default", "events", 2) == {}
    assert await store.advance("default", "events", {"v@1/0": ("", "10:5")}, 1) == [False]
    assert await store.advance("default", "events", {"v@1/0": ("", "10:5")}, 2) == [True]
    assert await store.take_positions("default", "events", 2) == {"v@1/0": "10:5"}
    assert await store.take_positions("default", "events", 3) == {}
    assert await store.advance("default", "events", {"v@1/0": ("10:5", "11:5")}, 2) == [False]
    await pipe.close()
