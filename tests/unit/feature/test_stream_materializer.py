"""The stream materializer over stores in memory: after any crash each event counts once."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    HOUR,
    SECOND,
    Aggregation,
    AggregationFunction,
    DataType,
    Entity,
    Field,
    Source,
    StreamSource,
    StreamView,
    VersionRef,
    View,
)
from flywheel_feature.encoding.keys import entity_keys, key_prefix
from flywheel_feature.fakes.online import MemoryOnlineStore
from flywheel_feature.fakes.streams import MemoryStreams
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.ingest.archive import Archiver
from flywheel_feature.ingest.archive_replay import ArchiveReplay
from flywheel_feature.ingest.generations import Generations
from flywheel_feature.ingest.source_rows import SourceRows
from flywheel_feature.ingest.stream_materialization import PositionLost, StreamMaterializer, TileFiller
from flywheel_feature.ingest.stream_tiles import SourceTiles, ViewTiles
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.windows.tile_reading import TileReader
from tests.support.builders.feature_units import object_array

KEY = Field("airport", DataType.STRING)
SCHEMA = (KEY, Field("at", DataType.TIMESTAMP), Field("x", DataType.FLOAT64))
SOURCE = Source("default", "events", SCHEMA, "at", "", StreamSource())
KIND = StreamView("events", (Aggregation("sum", AggregationFunction.SUM, "x", 6 * HOUR),), "", 600 * SECOND)
VIEW = View("default", "sums", "airport", KIND, version=1)
CATALOG = Catalog(
    "default",
    1,
    {"airport": Entity("default", "airport", (KEY,))},
    {"events": SOURCE},
    {VersionRef("sums", 1): VIEW},
    {},
    {"sums": VIEW},
)


class ProcessDied(Exception):
    """Raised where the simulated process dies."""


class CrashingPort:
    """A port that kills the process after a number of calls, before the effect or before the answer."""

    def __init__(self, inner: Any, calls_left: list[int]) -> None:
        self._inner = inner
        self._left = calls_left

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            self._left[0] -= 1
            if self._left[0] == 0:
                raise ProcessDied
            answer = await getattr(self._inner, name)(*args)
            if self._left[0] == 1 and len(args) % 2:
                raise ProcessDied
            return answer

        return call


def records(events: list[tuple[str, int]], low: int, high: int) -> SourceRows:
    """Events low <= offset < high: (airport, id), each of value id + 1."""
    mine = events[low:high]
    present = np.ones(len(mine), bool)
    airports = object_array(*(a for a, _ in mine))
    values = np.array([i + 1.0 for _, i in mine])
    times = np.array([i * 60 * SECOND for _, i in mine], np.int64)
    columns = {"airport": (airports, present), "at": (times, present), "x": (values, present)}
    return SourceRows(SOURCE, 0, columns, [str(i) for _, i in mine], np.arange(low, high), high)


async def run_process(
    events: list[tuple[str, int]], step: int, calls: int, online: Any, streams: Any, files: MemoryTables
) -> bool:
    """Work on the partition; returns False when the process died at one of `calls` calls of ports."""
    left = [calls]
    store, streams = CrashingPort(online, left), CrashingPort(streams, left)
    tombstones = TombstoneFilter(lambda _: CATALOG, lambda _: {})
    tiles = SourceTiles(store)
    archiver = Archiver(streams, files, lambda: uuid4().hex, tombstones, files.delete, flush_rows=5)
    filler = TileFiller(Generations(store, streams), ArchiveReplay(streams, files), tiles, tombstones)
    worker = StreamMaterializer(streams, streams, tiles, archiver, filler)
    try:
        at = await worker.begin(CATALOG, SOURCE, 0)
        while at < len(events):
            following = min(at + step, len(events))
            await worker.apply(CATALOG, records(events, at, following))
            at = following
        await archiver.flush_all()
    except (ProcessDied, PositionLost):
        return False
    return True


@settings(max_examples=100, deadline=None)
@given(
    events=st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 30)), min_size=1, max_size=30),
    processes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(0, 4)), max_size=8),
)
def test_each_event_counts_once_when_processes_die_anywhere(
    events: list[tuple[str, int]], processes: list[tuple[int, int, int]]
) -> None:
    # An id has always the same airport: the event is repeated.
    events = [("AB"[i % 2], i) for _, i in events]
    online, streams, files = MemoryOnlineStore(), MemoryStreams(), MemoryTables()

    async def run_all() -> tuple[list[bytes | None], list[str]]:
        nonlocal online
        for calls, step, case in processes:
            if case == 0:
                # The online store loses its data, the archive does not.
                online = MemoryOnlineStore()
            await run_process(events, step, calls, online, streams, files)
        assert await run_process(events, 7, 10_000, online, streams, files)
        names = entity_keys([(DataType.STRING, ["A", "B"])])
        states = await online.read([key_prefix(VIEW) + n for n in names])
        segments = await streams.segments("default", "events")
        return states, [segment.uri for segment in segments]

    states, uris = asyncio.run(run_all())
    layout = ViewTiles(VIEW, (KEY,), SCHEMA).layout
    (sums,) = TileReader(layout).read(states, np.full(2, 40 * 60 * SECOND, np.int64)).columns
    expected = [sum(i + 1.0 for i in {i for a, i in events if a == airport}) for airport in "AB"]
    assert expected == [float(v) if ok else 0.0 for v, ok in zip(*sums, strict=True)]
    archived = [i for uri in uris for i in files.read_files([uri], ["__event_id"])["__event_id"].to_list()]
    assert sorted({str(i) for _, i in events}) == sorted(archived)


EVENTS = [("A", i) for i in range(10)]


def archiver_of(streams: MemoryStreams, files: MemoryTables) -> tuple[Archiver, list[tuple[str, int]]]:
    """An archiver, and the partitions that it lost."""
    archiver = Archiver(
        streams, files, lambda: uuid4().hex, TombstoneFilter(lambda _: CATALOG, lambda _: {}), files.delete
    )
    lost: list[tuple[str, int]] = []
    archiver.on_lost(lambda source, partition: lost.append((source.id, partition)))
    return archiver, lost


def test_partition_is_lost_when_another_process_archives_it() -> None:
    streams, files = MemoryStreams(), MemoryTables()
    (one, lost_by_one), (two, lost_by_two) = (archiver_of(streams, files) for _ in range(2))

    async def both_archive() -> int:
        for archiver in (one, two):
            archiver.begin(SOURCE, 0, 0)
            await archiver.gather(records(EVENTS, 0, 5))
        await one.flush_all()
        await two.flush_all()
        await one.gather(records(EVENTS, 5, 10))
        await one.flush_all()
        return await streams.archived_offset("default", "events", 0)

    assert 10 == asyncio.run(both_archive())
    assert ([], [("events", 0)]) == (lost_by_one, lost_by_two)


def test_partition_that_is_given_up_is_archived_and_forgotten() -> None:
    streams, files = MemoryStreams(), MemoryTables()
    archiver, lost = archiver_of(streams, files)

    async def give_up() -> int:
        archiver.begin(SOURCE, 0, 0)
        await archiver.gather(records(EVENTS, 0, 5))
        await archiver.end(SOURCE, 0)
        # A batch that comes late is not archived here.
        await archiver.gather(records(EVENTS, 5, 10))
        await archiver.flush_all()
        await archiver.end(SOURCE, 0)
        return await streams.archived_offset("default", "events", 0)

    assert 5 == asyncio.run(give_up())
    assert [] == lost


def test_positions_move_past_records_without_rows() -> None:
    online, streams, files = MemoryOnlineStore(), MemoryStreams(), MemoryTables()

    async def skip() -> tuple[int, str, int]:
        archiver, _ = archiver_of(streams, files)
        tombstones = TombstoneFilter(lambda _: CATALOG, lambda _: {})
        tiles = SourceTiles(online)
        filler = TileFiller(Generations(online, streams), ArchiveReplay(streams, files), tiles, tombstones)
        worker = StreamMaterializer(streams, streams, tiles, archiver, filler)
        await worker.begin(CATALOG, SOURCE, 0)
        await worker.apply(CATALOG, records(EVENTS, 0, 5))
        await worker.skip(CATALOG, SOURCE, 0, 8)
        await archiver.flush_all()
        (position,) = (await online.positions("default", "events")).values()
        (segment,) = await streams.segments("default", "events")
        return await streams.archived_offset("default", "events", 0), position, segment.event_count

    archived, position, count = asyncio.run(skip())
    assert (8, 5) == (archived, count)
    assert f"8:{4 * 60 * SECOND}" == position
