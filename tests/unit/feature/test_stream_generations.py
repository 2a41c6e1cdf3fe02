"""Partitions that began in different generations of the online store, over stores in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any
from uuid import uuid4

import numpy as np

from flywheel_common.clock import SystemClock
from flywheel_common.event_time import EventTimeBound
from flywheel_common.kafka.claimed_consumer import TopicPartition
from flywheel_feature.apply.applied import AppliedDefinitions
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    HOUR,
    Aggregation,
    AggregationFunction,
    DataType,
    Entity,
    Field,
    Source,
    StreamSource,
    StreamView,
    View,
)
from flywheel_feature.fakes.online import MemoryOnlineStore
from flywheel_feature.fakes.streams import MemoryStreams
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.ingest.archive import Archiver
from flywheel_feature.ingest.archive_replay import ArchiveReplay
from flywheel_feature.ingest.generations import Generations
from flywheel_feature.ingest.source_rows import SourceRows
from flywheel_feature.ingest.stream_materialization import StreamMaterializer, TileFiller
from flywheel_feature.ingest.stream_tiles import SourceTiles
from flywheel_feature.ingest.stream_worker import StreamWorker
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.store.kafka.source_topics import topic_spec
from tests.support.builders.feature_units import object_array

KEY = Field("rider", DataType.STRING)
SOURCE = Source("default", "rides", (KEY, Field("at", DataType.TIMESTAMP)), "at", "", StreamSource())
KIND = StreamView("rides", (Aggregation("n", AggregationFunction.COUNT, "", HOUR),), "", HOUR)
VIEW = View("default", "by_ride", "rider", KIND, version=1)
CATALOG = Catalog(
    "default",
    1,
    {"rider": Entity("default", "rider", (KEY,))},
    {"rides": SOURCE},
    {VIEW.ref: VIEW},
    {},
    {"by_ride": VIEW},
)


class Definitions:
    """A definition store with one revision."""

    plan = apply = None

    async def changed(self, known: Any) -> list[Catalog]:
        return [CATALOG] if "default" not in known else []


class Consumer:
    """Reads the given partitions; keeps which ones the worker restarts."""

    def __init__(self, assigned: list[TopicPartition]) -> None:
        self.assigned = assigned
        self.restarted: list[TopicPartition] = []

    def restart(self, partitions: Collection[TopicPartition]) -> None:
        self.restarted += partitions


class Process:
    """A stream worker with its own view of shared stores."""

    def __init__(self, online: MemoryOnlineStore, streams: MemoryStreams) -> None:
        definitions, files = AppliedDefinitions(Definitions()), MemoryTables()  # type: ignore[arg-type]
        tombstones = TombstoneFilter(definitions.catalog, lambda _: {})
        self.generations, tiles = Generations(online, streams), SourceTiles(online)
        filler = TileFiller(self.generations, ArchiveReplay(streams, files), tiles, tombstones)
        archiver = Archiver(streams, files, lambda: uuid4().hex, tombstones, files.delete)
        self.materializer = StreamMaterializer(streams, streams, tiles, archiver, filler)
        self.definitions = definitions
        self.bound = EventTimeBound(SystemClock(), 300)

    async def worker(self) -> StreamWorker:
        await self.definitions.refresh()
        return StreamWorker(
            self.definitions, self.materializer, self.generations, lambda s: topic_spec(s, "", 4), self.bound
        )


def partition(number: int) -> TopicPartition:
    return TopicPartition("feature.source.rides", number)


def one_row(number: int) -> SourceRows:
    """One event at offset 0 of a partition."""
    present = np.ones(1, bool)
    columns = {"rider": (object_array("A"), present), "at": (np.array([1], np.int64), present)}
    return SourceRows(SOURCE, number, columns, [f"event-{number}"], np.array([0]), 1)


async def test_quiet_partition_of_an_ended_generation_begins_again() -> None:
    online, streams = MemoryOnlineStore(), MemoryStreams()
    process = Process(online, streams)
    worker = await process.worker()
    consumer = Consumer([partition(0), partition(1)])
    worker.attach(consumer)  # type: ignore[arg-type]
    await worker.begin(partition(0))
    await process.materializer.apply(CATALOG, one_row(0))
    assert {"by_ride@1/0": "1:1"} == await online.positions("default", "rides")
    # Another process saw lost data; partition 1 begins after that and takes the positions of the source.
    await Process(online, streams).generations.begin(1)
    await worker.begin(partition(1))
    assert {} == await online.positions("default", "rides")
    await worker.restart_lost()
    assert [partition(0)] == consumer.restarted
    assert 0 == await worker.begin(partition(0)), "its events are read again"
    await process.materializer.apply(CATALOG, one_row(0))
    assert {"by_ride@1/0": "1:1"} == await online.positions("default", "rides")
    await worker.restart_lost()
    assert [partition(0)] == consumer.restarted, "all partitions are in the current generation"


async def test_all_partitions_begin_again_after_the_store_lost_its_data() -> None:
    online, streams = ForgetfulStore(), MemoryStreams()
    process = Process(online, streams)
    worker = await process.worker()
    consumer = Consumer([partition(0), partition(1)])
    worker.attach(consumer)  # type: ignore[arg-type]
    await worker.begin(partition(0))
    await worker.begin(partition(1))
    await worker.restart_lost()
    assert [] == consumer.restarted
    online.lose()
    await worker.restart_lost()
    assert [partition(0), partition(1)] == consumer.restarted


class ForgetfulStore(MemoryOnlineStore):
    """An online store that can lose its data."""

    def lose(self) -> None:
        vars(self).update(vars(MemoryOnlineStore()))


class SlowCounter(MemoryStreams):
    """A counter whose answers take between 0 and 4 turns of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    async def generation(self) -> int:
        self._calls += 1
        for _ in range(self._calls % 5):
            await asyncio.sleep(0)
        return await super().generation()


async def test_partitions_that_begin_together_share_one_generation() -> None:
    online, streams = MemoryOnlineStore(), SlowCounter()
    generations = Generations(online, streams)
    found = await asyncio.gather(*(generations.current() for _ in range(12)))
    assert [1] * 12 == list(found)
    assert 1 == await online.generation()


async def test_generation_that_another_process_begins_meanwhile_is_joined() -> None:
    online, streams = MemoryOnlineStore(), SlowCounter()
    found = await asyncio.gather(*(Generations(online, streams).current() for _ in range(2)))
    assert [1, 1] == list(found)
    assert 1 == await online.generation()
