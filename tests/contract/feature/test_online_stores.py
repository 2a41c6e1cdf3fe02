"""Contract tests for rows, tiles and applied positions: in memory, in Redis and in a Redis Cluster."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from flywheel_common.errors import Unavailable
from flywheel_feature.definitions.model import SECOND, DataType, Feature
from flywheel_feature.encoding.row_encoding import RowLayout
from flywheel_feature.encoding.same_length_keys import SameLengthTexts, keys_of
from flywheel_feature.fakes.online import MemoryOnlineStore
from flywheel_feature.store.redis.cluster import ClusterPipe
from flywheel_feature.store.redis.connection import RedisPipe
from flywheel_feature.store.redis.online_store import OnlineStore
from flywheel_feature.windows.applied_offsets import positions_of
from tests.support.builders.tiles import LAYOUT, START, F, delta, windows, windows_of_events
from tests.support.ports import free_port
from tests.support.servers.redis_cluster import Cluster, three_nodes

ROWS = RowLayout([Feature("x", DataType.FLOAT64)])


@pytest.fixture(params=["memory", "redis", "cluster"])
def store(request: pytest.FixtureRequest) -> Any:
    if request.param == "memory":
        return MemoryOnlineStore()
    return request.getfixturevalue({"redis": "in_redis", "cluster": "in_cluster"}[request.param])


@pytest.fixture
async def in_redis(redis_url: str) -> AsyncIterator[OnlineStore]:
    pipe = RedisPipe(redis_url)
    yield OnlineStore(pipe)
    await pipe.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with three_nodes(tmp_path_factory.mktemp("cluster")) as nodes:
        asyncio.run(nodes.form())
        yield nodes


@pytest.fixture
async def in_cluster(cluster: Cluster) -> AsyncIterator[OnlineStore]:
    """An empty cluster."""
    for port in cluster.ports:
        node = cluster.node(port)
        await node.call("FLUSHALL")
        await node.close()
    pipe = ClusterPipe(cluster.url)
    yield OnlineStore(pipe)
    await pipe.close()


def row(event: int, created: int, x: float) -> bytes:
    """A row with these times, in seconds after START."""
    times = (np.array([START + seconds * SECOND]) for seconds in (event, created))
    (packed,) = ROWS.encode({"x": (np.array([x]), np.ones(1, bool))}, *times)
    return packed


async def test_rows_are_read_in_the_requested_order(store: Any) -> None:
    await store.write_rows([b"a", b"b"], [row(1, 1, 1.0), row(1, 1, 2.0)], 0)
    found = await store.read([b"b", b"absent", b"a", b"b"])
    assert [2.0, 0.0, 1.0, 2.0] == ROWS.decode(found).columns[0][0].tolist()
    assert [True, False, True, True] == ROWS.decode(found).found.tolist()
    assert [] == await store.read([])


async def test_keys_in_one_buffer_are_read_like_other_keys(store: Any) -> None:
    texts = SameLengthTexts.of(b"".join(b"\n\x02%02d" % i for i in range(40)), 40)
    assert texts is not None
    keys = keys_of([(b"p/v@1{", texts), (b"p/w@1{", texts)])
    stored = [b"p/%b@1{2:%02d}" % (view, i) for view in (b"v", b"w") for i in range(40)]
    known = [i for i in range(80) if i % 3]
    rows = [row(1, 1, float(i)) for i in known]
    assert len(known) == await store.write_rows([stored[i] for i in known], rows, 0)
    found = ROWS.decode(await store.read(keys))
    assert [i % 3 > 0 for i in range(80)] == found.found.tolist()
    assert [float(i) if i % 3 else 0.0 for i in range(80)] == found.columns[0][0].tolist()


async def test_keys_of_any_length_are_read(store: Any) -> None:
    keys = [b"k" * n for n in (1, 511, 512, 70_000)]
    assert 4 == await store.write_rows(keys, [row(1, 1, float(i)) for i in range(4)], 0)
    assert [0.0, 1.0, 2.0, 3.0] == ROWS.decode(await store.read(keys)).columns[0][0].tolist()


async def test_concurrent_writes_keep_the_newest_row(store: Any) -> None:
    versions = [(e, c, float(10 * e + c)) for e in range(3) for c in range(3)]
    random.Random(5).shuffle(versions)
    await asyncio.gather(*(store.write_rows([b"k"], [row(*v)], 60_000) for v in versions * 2))

    async def value() -> float:
        (found,) = ROWS.decode(await store.read([b"k"])).columns[0][0].tolist()
        return float(found)

    assert 22.0 == await value()
    await store.write_rows([b"k"], [row(2, 1, 99.0)], 0)
    await store.write_rows([b"k"], [row(1, 5, 99.0)], 0)
    assert 22.0 == await value()
    await store.write_rows([b"k"], [row(2, 2, 23.0)], 0)
    assert 23.0 == await value(), "of rows with equal times the last one is kept"


async def test_write_returns_how_many_rows_were_newer(store: Any) -> None:
    assert 2 == await store.write_rows([b"a", b"b"], [row(1, 1, 1.0), row(1, 1, 2.0)], 0)
    assert 0 == await store.write_rows([b"a", b"b"], [row(1, 1, 1.0), row(1, 0, 9.0)], 0), (
        "a repeated row writes nothing"
    )
    assert 1 == await store.write_rows([b"a", b"c"], [row(0, 9, 1.0), row(1, 1, 1.0)], 0)


async def test_deleted_keys_are_counted(store: Any) -> None:
    await store.write_rows([b"a", b"b"], [row(1, 1, 1.0), row(1, 1, 2.0)], 0)
    assert 1 == await store.delete([b"a", b"absent"])
    assert [None, row(1, 1, 2.0)] == await store.read([b"a", b"b"])
    assert 0 == await store.delete([])


async def test_newest_marked_generation_wins(store: Any) -> None:
    assert await store.generation() is None, "nothing is marked in an empty store"
    await store.mark_generation(3)
    await store.mark_generation(2)
    assert 3 == await store.generation()


async def test_deltas_in_any_order_give_the_windows_of_all_events(store: Any) -> None:
    for seed in range(4):
        chance = random.Random(seed)
        key, prefix = f"k{seed}".encode(), f"{seed}/"
        minutes = [chance.randrange(0, 300) for _ in range(40)]
        shuffled = chance.sample(range(40), 40)
        cuts = sorted({0, 40, *(chance.randrange(40) for _ in range(6))})
        for low, high in pairwise(cuts):
            added = delta(shuffled[low:high], minutes, prefix)
            assert [high] == await store.merge_tiles(LAYOUT, [(key, added, low, high)], 0, 60_000, 1)
        (state,) = await store.read([key])
        for minute in (max(minutes), max(minutes) + 60):
            expected = windows_of_events(range(40), minutes, minute, prefix)
            assert expected == pytest.approx(windows(state, minute), rel=1e-9, nan_ok=True), (seed, minute)


@pytest.mark.parametrize("seed", range(4))
async def test_interleaved_partitions_give_the_tiles_of_all_events(store: Any, seed: int) -> None:
    chance = random.Random(seed)
    minutes = [chance.randrange(0, 300) for _ in range(40)]
    cuts = sorted({0, 40, *(chance.randrange(40) for _ in range(6))})
    # Two partitions alternate, so that their events interleave in time.
    for number, (low, high) in enumerate(pairwise(cuts)):
        partition = number % 2
        assert [high] == await store.merge_tiles(
            LAYOUT, [(b"k", delta(range(low, high), minutes), low, high)], partition, 60_000, 1
        )
    (state,) = await store.read([b"k"])
    for minute in (max(minutes), max(minutes) + 60):
        expected = windows_of_events(range(40), minutes, minute)
        assert windows(state, minute) == pytest.approx(expected, rel=1e-9, nan_ok=True)
    reached = {n % 2: high for n, (_, high) in enumerate(pairwise(cuts))}
    _, pairs = positions_of([state])
    assert reached == dict(pairs.tolist())


async def test_events_that_a_key_has_seen_change_nothing(store: Any) -> None:
    minutes = list(range(20))

    async def merge(low: int, high: int) -> int:
        (answer,) = await store.merge_tiles(
            LAYOUT, [(b"k", delta(range(low, high), minutes), low, high)], 0, 0, 1
        )
        return int(answer)

    assert 10 == await merge(0, 10)
    before = await store.read([b"k"])
    assert 10 == await merge(0, 10)
    assert 10 == await merge(2, 5)
    # A part of the delta is new: nothing is merged, and the answer is the offset where the new part begins.
    assert 10 == await merge(5, 15)
    assert before == await store.read([b"k"])
    assert 15 == await merge(10, 15)
    (state,) = await store.read([b"k"])
    assert windows_of_events(range(15), minutes, 20) == pytest.approx(windows(state, 20), rel=1e-9)


async def test_tiles_older_than_the_kept_ones_are_dropped(store: Any) -> None:
    days = [0, 60 * 24, 60 * 24 + 10]
    for i in (0, 1, 2):
        await store.merge_tiles(LAYOUT, [(b"k", delta([i], days), i, i + 1)], 0, 0, 1)
    late = [*days, 5]
    assert [4] == await store.merge_tiles(LAYOUT, [(b"k", delta([3], late), 3, 4)], 0, 0, 1)
    (state,) = await store.read([b"k"])
    assert state is not None
    count = windows(state, days[2])[list(F).index(F.COUNT)]
    assert (2, 2.0) == (count, np.frombuffer(state, "<f8")[2])


async def test_one_event_far_ahead_drops_no_tiles(store: Any) -> None:
    """A replay of last year meets an event of today; two tiles of today show that time has moved on."""
    year = 365 * 1440
    minutes = [0, 60, year, year + 1, 100, 110, year + 10, 115]
    counted = [1, 2, 2, 2, 2, 3, 0, 0]  # the event 4 has no value
    for number, expected in enumerate(counted):
        added = delta([number], minutes)
        await store.merge_tiles(LAYOUT, [(b"k", added, number, number + 1)], 0, 0, 1)
        (state,) = await store.read([b"k"])
        assert expected == windows(state, 119)[list(F).index(F.COUNT)], f"after event {number}"
    assert 3 == windows(state, year + 10)[list(F).index(F.COUNT)]
    # The same events at once.
    assert [8] == await store.merge_tiles(LAYOUT, [(b"all", delta(range(8), minutes), 0, 8)], 0, 0, 1)
    (state,) = await store.read([b"all"])
    assert 3 == windows(state, year + 10)[list(F).index(F.COUNT)]


async def test_nothing_is_found_before_the_first_event(store: Any) -> None:
    days = [3 * 1440, 1440, 2 * 1440, 9 * 1440]
    # Days are so far apart that the tiles of two days are kept.
    expected: list[list[int | None]] = [
        [None, None, None, 1, 0],
        [None, 1, 0, 1, 0],
        [None, 0, 1, 1, 0],
        [None, 0, 0, 1, 0],
    ]
    for number, counts in enumerate(expected):
        following = number + 1
        added = delta([number], days)
        assert [following] == await store.merge_tiles(LAYOUT, [(b"k", added, number, following)], 0, 0, 1)
        (state,) = await store.read([b"k"])
        assert counts == [windows(state, day * 1440)[list(F).index(F.COUNT)] for day in range(5)]
        assert [[0, following]] == positions_of([state])[1].tolist()


async def test_state_of_an_older_generation_counts_as_absent(store: Any) -> None:
    minutes = list(range(20))
    assert [10] == await store.merge_tiles(LAYOUT, [(b"k", delta(range(10), minutes), 0, 10)], 0, 0, 1)
    # The same events again, as a part of the first generation may be lost.
    assert [5] == await store.merge_tiles(LAYOUT, [(b"k", delta(range(5), minutes), 0, 5)], 0, 0, 2)
    (state,) = await store.read([b"k"])
    assert windows(state, 20) == pytest.approx(windows_of_events(range(5), minutes, 20), rel=1e-9)
    assert [[0, 5]] == positions_of([state])[1].tolist()
    assert [-1] == await store.merge_tiles(LAYOUT, [(b"k", delta(range(5, 9), minutes), 5, 9)], 0, 0, 1)
    assert [state] == await store.read([b"k"])


async def test_position_moves_only_from_its_stored_value(store: Any) -> None:
    assert {} == await store.take_positions("p", "s", 1)
    assert [True, True] == await store.advance("p", "s", {"v@1/0": ("", "5:1"), "v@1/1": ("", "7:1")}, 1)
    assert [False, True] == await store.advance("p", "s", {"v@1/0": ("", "6:1"), "v@1/1": ("7:1", "8:2")}, 1)
    assert {"v@1/0": "5:1", "v@1/1": "8:2"} == await store.positions("p", "s")
    assert {} == await store.positions("p", "other")
    racing = await asyncio.gather(
        *(store.advance("p", "s", {"v@1/0": ("5:1", f"{i}:1")}, 1) for i in range(6, 16))
    )
    assert 1 == sum(moved for (moved,) in racing)


async def test_positions_of_an_older_generation_are_deleted_and_cannot_move(store: Any) -> None:
    await store.take_positions("p", "s", 1)
    assert [True] == await store.advance("p", "s", {"v@1/0": ("", "5:1")}, 1)
    assert {} == await store.take_positions("p", "s", 2)
    assert [False] == await store.advance("p", "s", {"v@1/0": ("", "9:1")}, 1)
    assert [True] == await store.advance("p", "s", {"v@1/0": ("", "3:1")}, 2)
    assert {} == await store.take_positions("p", "s", 1)
    assert {"v@1/0": "3:1"} == await store.take_positions("p", "s", 2)


@pytest.mark.parametrize(("opened", "scheme"), [(RedisPipe, "redis"), (ClusterPipe, "redis+cluster")])
async def test_unreachable_store_is_unavailable(opened: Any, scheme: str) -> None:
    pipe = opened(f"{scheme}://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable) as refused:
        await OnlineStore(pipe).read([b"k"])
    assert "ONLINE_STORE_DOWN" == refused.value.reason
    await pipe.close()
