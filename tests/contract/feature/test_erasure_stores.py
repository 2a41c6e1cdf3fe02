"""Contract tests for tombstones, garbage and the push log: memory and PostgreSQL."""

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
    """Stores that share their garbage."""

    tombstones: MemoryTombstones | PostgresTombstones
    pushes: MemoryPushLog | PostgresPushLog


@pytest.fixture
def stores(backing: str, request: pytest.FixtureRequest) -> Stores:
    if backing == "memory":
        garbage: Garbage = {}
        return Stores(MemoryTombstones(garbage), MemoryPushLog(garbage))
    pool: Any = request.getfixturevalue("pool")
    return Stores(PostgresTombstones(pool), PostgresPushLog(pool))


async def test_tombstones_of_an_entity_keep_latest_time_and_last_barriers(
    stores: Stores,
) -> None:
    tombstones = stores.tombstones
    assert {} == tombstones.of("p")
    await tombstones.put("p", "plane", KEY, Tombstone(20, {"landings": {0: 5, 1: 7}}))
    assert {"plane": {KEY: Tombstone(20, {"landings": {0: 5, 1: 7}})}} == tombstones.of("p")
    await tombstones.put("p", "plane", KEY, Tombstone(10, {"landings": {0: 9}}))
    await tombstones.put("p", "pilot", b"other", Tombstone(1))
    await tombstones.put("q", "plane", KEY, Tombstone(2))
    assert {
        "plane": {KEY: Tombstone(20, {"landings": {0: 9}})},
        "pilot": {b"other": Tombstone(1, {})},
    } == tombstones.of("p")
    assert {"plane": {KEY: Tombstone(2, {})}} == tombstones.of("q")


async def test_other_processes_see_a_tombstone_after_refresh(pool: Any) -> None:
    here, there = PostgresTombstones(pool), PostgresTombstones(pool)
    await here.put("p", "plane", KEY, Tombstone(20))
    assert {} == there.of("p")
    await there.refresh()
    assert here.of("p") == there.of("p")


async def test_garbage_is_listed_once_until_it_is_deleted(stores: Stores) -> None:
    tombstones = stores.tombstones
    await tombstones.add_garbage(["b", "a"])
    await tombstones.add_garbage(["b", "c"])
    await tombstones.add_garbage([])
    assert ["a", "b", "c"] == await tombstones.garbage()
    await tombstones.deleted("b")
    await tombstones.deleted("b")
    assert ["a", "c"] == await tombstones.garbage()


async def test_files_of_the_push_log_are_in_the_order_of_their_pushes(stores: Stores) -> None:
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


async def test_replacing_a_pushed_file_keeps_its_number_and_makes_garbage(
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
        assert ["a", "b"] == await stores.tombstones.garbage()
    await pushes.add("p", "facts", "d", 1)
    assert second < third < (await pushes.keys("p", "facts"))[-1][0], "numbers are not reused"
