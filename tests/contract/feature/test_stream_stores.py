"""Contract tests for event ids, segments, positions and generations of streams: memory and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from flywheel_feature.definitions.model import DataType, Field, Source, StreamSource
from flywheel_feature.fakes.streams import Garbage, MemoryStreams, MemoryTombstones
from flywheel_feature.ingest.archive import NewSegment
from flywheel_feature.ingest.generations import GenerationCounter, Generations
from flywheel_feature.store.postgres.archive import PostgresArchive
from flywheel_feature.store.postgres.generations import PostgresGenerations
from flywheel_feature.store.postgres.tombstones import PostgresTombstones
from flywheel_feature.store.redis.connection import RedisPipe
from flywheel_feature.store.redis.online_store import OnlineStore
from flywheel_feature.tables.ports import Segment
from flywheel_local.redis import Redis

SOURCE = Source("p", "landings", (Field("at", DataType.TIMESTAMP),), "at", "", StreamSource())
FIRST = NewSegment(SOURCE, 0, 0, 10, "sources/a.parquet", 9, 100, 200)


@pytest.fixture
def garbage() -> Garbage:
    return {}


@pytest.fixture
def streams(backing: str, garbage: Garbage, request: pytest.FixtureRequest) -> Any:
    if backing == "memory":
        return MemoryStreams("bucket", garbage)
    return PostgresArchive(request.getfixturevalue("pool"), "bucket")


@pytest.fixture
def tombstones(backing: str, garbage: Garbage, request: pytest.FixtureRequest) -> Any:
    if backing == "memory":
        return MemoryTombstones(garbage)
    return PostgresTombstones(request.getfixturevalue("pool"))


@pytest.fixture
def counter(backing: str, request: pytest.FixtureRequest) -> GenerationCounter:
    return MemoryStreams() if backing == "memory" else PostgresGenerations(request.getfixturevalue("pool"))


async def test_event_id_is_first_seen_in_one_place_and_answers_never_change(
    streams: Any,
) -> None:
    async def ask(ids: list[str], offsets: list[int], partition: int = 0, source: str = "s") -> list[bool]:
        found: list[bool] = await streams.first_seen(source, ids, partition, offsets)
        return found

    for _ in range(2):
        # One record may have several rows with the same id.
        assert [True, True, False, True] == await ask(["a", "b", "a", "c"], [5, 5, 5, 6])
    assert [False, True, False] == await ask(["a", "d", "c"], [7, 7, 8])
    assert [False, False] == await ask(["b", "d"], [5, 7], partition=1)
    assert [True] == await ask(["a"], [9], source="another")
    assert [] == await ask([], [])


async def test_concurrent_members_agree_who_saw_an_id_first(streams: Any) -> None:
    answers = await asyncio.gather(*(streams.first_seen("s", ["x", f"own-{p}"], p, [3, 3]) for p in range(8)))
    assert 1 == sum(a[0] for a in answers)
    assert all(a[1] for a in answers)


async def test_segment_is_committed_only_at_the_current_position(streams: Any) -> None:
    assert 0 == await streams.archived_offset("p", "landings", 0)
    assert await streams.commit(FIRST)
    assert not await streams.commit(replace(FIRST, key="sources/again.parquet"))
    assert not await streams.commit(
        replace(FIRST, first_offset=11, next_offset=12, key="sources/gap.parquet")
    )
    assert await streams.commit(
        replace(FIRST, first_offset=10, next_offset=15, key="sources/b.parquet", event_count=2)
    )
    assert await streams.commit(
        replace(FIRST, partition=1, first_offset=3, next_offset=4, key="sources/c.parquet")
    )
    # A range of duplicates only moves the position.
    assert await streams.commit(replace(FIRST, first_offset=15, next_offset=20, key="", event_count=0))
    assert (20, 4, 0) == tuple([await streams.archived_offset("p", "landings", n) for n in (0, 1, 2)])
    assert {0: 20, 1: 4} == await streams.archived_offsets("p", "landings")
    assert [
        Segment("s3://bucket/sources/a.parquet", 0, 0, 10, 100, 200, 9),
        Segment("s3://bucket/sources/b.parquet", 0, 10, 15, 100, 200, 2),
        Segment("s3://bucket/sources/c.parquet", 1, 3, 4, 100, 200, 9),
    ] == list(await streams.segments("p", "landings"))
    assert [] == list(await streams.segments("q", "landings"))
    assert {} == await streams.archived_offsets("p", "other")


async def test_concurrent_commits_of_a_range_archive_it_once(streams: Any) -> None:
    done = await asyncio.gather(
        *(streams.commit(replace(FIRST, key=f"sources/{i}.parquet")) for i in range(8))
    )
    assert 1 == sum(done)
    assert 1 == len(await streams.segments("p", "landings"))


async def test_archived_positions_are_listed_by_source_and_partition(streams: Any) -> None:
    assert {} == await streams.archived("p")
    await streams.commit(FIRST)
    await streams.commit(replace(FIRST, first_offset=10, next_offset=12, key="", event_count=0))
    await streams.commit(replace(FIRST, partition=1, key="sources/b.parquet", event_count=4))
    other = replace(FIRST, source=replace(SOURCE, id="starts"), key="sources/c.parquet")
    await streams.commit(other)
    assert {"landings": {0: (12, 9), 1: (10, 4)}, "starts": {0: (10, 9)}} == await streams.archived("p")
    assert {} == await streams.archived("q")


async def test_replacing_a_segment_makes_the_old_object_garbage(streams: Any, tombstones: Any) -> None:
    await streams.commit(FIRST)
    await streams.commit(
        replace(FIRST, first_offset=10, next_offset=15, key="sources/b.parquet", event_count=2)
    )
    for _ in range(2):
        # Twice, as an erasure that is resumed may repeat it.
        await streams.replace_segment("sources/a.parquet", "sources/less.parquet", 7, 110, 190)
        await streams.replace_segment("sources/b.parquet", "", 0, 0, 0)
        assert [Segment("s3://bucket/sources/less.parquet", 0, 0, 10, 110, 190, 7)] == list(
            await streams.segments("p", "landings")
        )
        assert {"landings": {0: (15, 7)}} == await streams.archived("p")
        assert ["sources/a.parquet", "sources/b.parquet"] == await tombstones.garbage()
    assert not await streams.commit(replace(FIRST, key="sources/again.parquet")), "the position stays"


async def test_concurrent_members_get_the_same_next_generation(counter: GenerationCounter) -> None:
    assert 0 == await counter.generation()
    assert {1} == set(await asyncio.gather(*(counter.next_generation(0) for _ in range(8))))
    assert 1 == await counter.next_generation(0), "a late member joins the generation"
    assert 2 == await counter.next_generation(1)
    assert 2 == await counter.generation()


async def test_partitions_that_begin_together_share_one_generation(
    counter: GenerationCounter, redis: Redis, redis_url: str
) -> None:
    pipe = RedisPipe(redis_url)
    generations = Generations(OnlineStore(pipe), counter)
    try:
        for loss in range(1, 31):
            redis.flush()
            assert [loss] * 12 == await asyncio.gather(*(generations.current() for _ in range(12)))
            assert loss == await generations.marked()
    finally:
        await pipe.close()
