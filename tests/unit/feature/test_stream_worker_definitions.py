"""What the stream worker reads again after definitions have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any
from uuid import uuid4

from flywheel_common.clock import SystemClock
from flywheel_common.event_time import EventTimeBound
from flywheel_feature.apply.applied import AppliedDefinitions
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    HOUR,
    Aggregation,
    AggregationFunction,
    DataType,
    Entity,
    Field,
    Metadata,
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
from flywheel_feature.ingest.stream_materialization import StreamMaterializer, TileFiller
from flywheel_feature.ingest.stream_tiles import SourceTiles
from flywheel_feature.ingest.stream_worker import StreamWorker
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.store.kafka.source_topics import topic_spec

KEY = Field("rider", DataType.STRING)
SCHEMA = (KEY, Field("at", DataType.TIMESTAMP))


def source(name: str) -> Source:
    return Source("default", name, SCHEMA, "at", "", StreamSource())


def view(name: str, of: str, version: int = 1) -> View:
    kind = StreamView(of, (Aggregation("n", AggregationFunction.COUNT, "", HOUR),), "", HOUR)
    return View("default", name, "rider", kind, version=version)


def catalog(revision: int, sources: list[Source], views: list[View]) -> Catalog:
    return Catalog(
        "default",
        revision,
        {"rider": Entity("default", "rider", (KEY,))},
        {s.id: s for s in sources},
        {v.ref: v for v in views},
        {},
        {v.id: v for v in views},
    )


class Store:
    """The part of a definition store that a worker uses."""

    plan = apply = None

    def __init__(self, first: Catalog) -> None:
        self.now = first

    async def changed(self, known: Mapping[str, int]) -> list[Catalog]:
        return [self.now] if known.get("default") != self.now.revision else []


class Consumer:
    """Keeps what the worker asks of its consumer."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def restart_topics(self, topics: Collection[str]) -> None:
        self.asked.append(sorted(topics))

    def topics_changed(self) -> None:
        self.asked.append("topics")


def stream_worker(definitions: AppliedDefinitions) -> StreamWorker:
    online, streams, files = MemoryOnlineStore(), MemoryStreams(), MemoryTables()
    tombstones = TombstoneFilter(definitions.catalog, lambda _: {})
    generations, tiles = Generations(online, streams), SourceTiles(online)
    filler = TileFiller(generations, ArchiveReplay(streams, files), tiles, tombstones)
    archiver = Archiver(streams, files, lambda: uuid4().hex, tombstones, files.delete)
    materializer = StreamMaterializer(streams, streams, tiles, archiver, filler)
    bound = EventTimeBound(SystemClock(), 300)
    return StreamWorker(definitions, materializer, generations, lambda s: topic_spec(s, "x.", 4), bound)


def test_a_change_restarts_only_the_sources_that_got_a_view() -> None:
    rides, trips, stops = source("rides"), source("trips"), source("stops")
    views = [view("by_ride", "rides"), view("by_trip", "trips")]
    store, consumer = Store(catalog(1, [rides, trips], views)), Consumer()
    definitions = AppliedDefinitions(store)  # type: ignore[arg-type]

    async def change(now: Catalog) -> list[Any]:
        consumer.asked.clear()
        store.now = now
        await definitions.refresh()
        return list(consumer.asked)

    async def run() -> None:
        await definitions.refresh()
        worker = stream_worker(definitions)
        worker.attach(consumer)  # type: ignore[arg-type]
        names = [(t.name, t.partitions) for t in worker.topics()]
        assert [("x.feature.source.rides", 4), ("x.feature.source.trips", 4)] == names
        assert ["topics"] == await change(catalog(2, [rides, trips, stops], views))
        assert [] == await change(catalog(3, [rides, trips, replace(stops, metadata=Metadata("all"))], views))
        more = [*views, view("by_stop", "stops"), view("also", "rides")]
        restarted = ["x.feature.source.rides", "x.feature.source.stops"]
        assert [restarted] == await change(catalog(4, [rides, trips, stops], more))
        again = [view("by_ride", "rides", 2), *more[1:]]
        assert [restarted[:1]] == await change(catalog(5, [rides, trips, stops], again))
        assert ["topics"] == await change(catalog(6, [rides, trips], [v for v in again if v.id != "by_stop"]))

    asyncio.run(run())
