"""One law for tombstones, garbage and the push log, in memory and in PostgreSQL. No RPC names any of them: tests/integration/feature
(test_erasure.py, test_pushes.py) show through the edge what they are for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from flywheel_feature.fakes.streams import Garbage, MemoryPushLog, MemoryTombstones
from flywheel_feature.ingest.tombstones import Tombstone
from flywheel_feature.store.postgres.push_log import PostgresPushLog
from flywheel_feature.store.postgres.tombstones import PostgresTombstones

KEY = b"k" * 32


@dataclass
class Stores:
    stones: MemoryTombstones | PostgresTombstones
    pushes: MemoryPushLog | PostgresPushLog


@pytest.fixture(params=["memory", "postgres"])
def stores(request: pytest.FixtureRequest) -> Stores:
    if request.param == "memory":
        garbage: Garbage = {}
        return Stores(MemoryTombstones(garbage), MemoryPushLog(garbage))
    pool: Any = request.getfixturevalue("pool")
    return Stores(PostgresTombstones(pool), PostgresPushLog(pool))


async def test_of_two_tombstones_of_an_entity_the_later_time_and_the_last_barriers_stand(
    stores: Stores,
) -> None:
    stones = stores.stones
    assert {} == stones.of("p")
    await stones.put("p", "plane", KEY, Tombstone(20, {"landings": {0: 5, 1: 7}}))
    assert {"plane": {KEY: Tombstone(20, {"landings": {0: 5, 1: 7}})}} == stones.of("p")
    await stones.put("p", "plane", KEY, Tombstone(10, {"landings": {0: 9}}))
    await stones.put("p", "pilot", b"other", Tombstone(1))
    await stones.put("q", "plane", KEY, Tombstone(2))
    assert {
        "plane": {KEY: Tombstone(20, {"landings": {0: 9}})}, "pilot": {b"other": Tombstone(1, {})}
    } == stones.of("p")  # fmt: skip
    assert {"plane": {KEY: Tombstone(2, {})}} == stones.of("q")


async def test_other_processes_learn_of_a_tombstone_when_they_read_again(pool: Any) -> None:
    here, there = PostgresTombstones(pool), PostgresTombstones(pool)
    await here.put("p", "plane", KEY, Tombstone(20))
    assert {} == there.of("p")
    await there.refresh()
    assert here.of("p") == there.of("p")


async def test_garbage_is_remembered_once_until_it_is_gone(stores: Stores) -> None:
    stones = stores.stones
    await stones.add_garbage(["b", "a"])
    await stones.add_garbage(["b", "c"])
    await stones.add_garbage([])
    assert ["a", "b", "c"] == await stones.garbage()
    await stones.deleted("b")
    await stones.deleted("b")
    assert ["a", "c"] == await stones.garbage()


async def test_files_of_the_push_log_come_in_the_order_in_which_they_were_added(stores: Stores) -> None:
    pushes = stores.pushes
    for key in ("z", "a", "m"):
        await pushes.add("p", "facts", key, 3)
    await pushes.add("p", "other", "x", 1)
    await pushes.add("q", "facts", "y", 1)
    found = await pushes.keys("p", "facts")
    assert ["z", "a", "m"] == [key for _, key in found]
    assert sorted(n for n, _ in found) == [n for n, _ in found]
    await asyncio.gather(*(pushes.add("p", "many", f"k{i}", 1) for i in range(8)))
    assert 8 == len({n for n, _ in await pushes.keys("p", "many")})
    assert [] == await pushes.keys("p", "none")


async def test_a_file_put_in_the_place_of_another_keeps_its_number_and_the_other_is_garbage(
    stores: Stores,
) -> None:
    pushes = stores.pushes
    for key in ("a", "b", "c"):
        await pushes.add("p", "facts", key, 3)
    (first, second, third) = [n for n, _ in await pushes.keys("p", "facts")]
    for _ in range(2):
        await pushes.replace("a", "less", 2)
        await pushes.replace("b", "", 0)
        assert [(first, "less"), (third, "c")] == await pushes.keys("p", "facts")
        assert ["a", "b"] == await stores.stones.garbage()
    await pushes.add("p", "facts", "d", 1)
    assert second < third < (await pushes.keys("p", "facts"))[-1][0], "no number is given twice"
