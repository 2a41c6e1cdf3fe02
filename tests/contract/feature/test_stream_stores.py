"""One law for the ids, segments and positions of streams, in memory and in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flywheel_feature
from flywheel_common.migrate import migrate
from flywheel_common.postgres import create_pool
from flywheel_feature.archiving import NewSegment
from flywheel_feature.definitions import DataType, Field, Source, StreamSource
from flywheel_feature.memory_streams import MemoryStreams
from flywheel_feature.offline.ports import Segment
from flywheel_feature.store.archive import PostgresArchive

SOURCE = Source("p", "landings", (Field("at", DataType.TIMESTAMP),), "at", "", StreamSource())
FIRST = NewSegment(SOURCE, 0, 0, 10, "sources/a.parquet", 9, 100, 200)


@pytest.fixture(params=["memory", "postgres"])
def dsn(request: pytest.FixtureRequest) -> str:
    """Empty for the store in memory."""
    return str(request.getfixturevalue("database")) if request.param == "postgres" else ""


@pytest.fixture
async def streams(dsn: str) -> AsyncIterator[Any]:
    if not dsn:
        yield MemoryStreams("bucket")
        return
    async with create_pool(dsn) as pool:
        await migrate(pool, Path(flywheel_feature.__file__).parent / "migrations")
        yield PostgresArchive(pool, "bucket")


async def test_an_id_is_first_seen_in_one_place_and_the_answer_for_a_place_never_changes(
    streams: Any,
) -> None:
    async def ask(ids: list[str], offsets: list[int], partition: int = 0, source: str = "s") -> list[bool]:
        found: list[bool] = await streams.first_seen(source, ids, partition, offsets)
        return found

    for _ in range(2):
        # One record may hold several rows, the same id too.
        assert [True, True, False, True] == await ask(["a", "b", "a", "c"], [5, 5, 5, 6])
    assert [False, True, False] == await ask(["a", "d", "c"], [7, 7, 8])
    assert [False, False] == await ask(["b", "d"], [5, 7], partition=1)
    assert [True] == await ask(["a"], [9], source="another")
    assert [] == await ask([], [])


async def test_of_members_that_see_an_id_at_once_one_is_first(streams: Any) -> None:
    answers = await asyncio.gather(*(streams.first_seen("s", ["x", f"own-{p}"], p, [3, 3]) for p in range(8)))
    assert 1 == sum(a[0] for a in answers)
    assert all(a[1] for a in answers)


async def test_a_segment_counts_only_where_the_position_is_at_its_begin(streams: Any) -> None:
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


async def test_of_members_that_race_for_a_range_one_archives_it(streams: Any) -> None:
    done = await asyncio.gather(
        *(streams.commit(replace(FIRST, key=f"sources/{i}.parquet")) for i in range(8))
    )
    assert 1 == sum(done)
    assert 1 == len(await streams.segments("p", "landings"))
