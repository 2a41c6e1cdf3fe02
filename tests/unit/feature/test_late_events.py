"""Windows leave out events that arrived too late: online, offline and after a rebuild the same ones."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from flywheel_feature.api.convert_training_sets import training_set_to_proto
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    HOUR,
    SECOND,
    Aggregation,
    AggregationFunction,
    DataType,
    Entity,
    Feature,
    Field,
    Source,
    StreamSource,
    StreamView,
    View,
)
from flywheel_feature.encoding.keys import entity_keys
from flywheel_feature.fakes.online import MemoryOnlineStore
from flywheel_feature.fakes.partitions import MemoryPartitions
from flywheel_feature.fakes.streams import MemoryStreams
from flywheel_feature.fakes.tables import MemoryTables
from flywheel_feature.ingest.archive import ARRIVED, Archiver
from flywheel_feature.ingest.archive_replay import ArchiveReplay
from flywheel_feature.ingest.generations import Generations
from flywheel_feature.ingest.source_rows import SourceRows
from flywheel_feature.ingest.stream_materialization import StreamMaterializer, TileFiller
from flywheel_feature.ingest.stream_tiles import SourceTiles
from flywheel_feature.ingest.tombstones import TombstoneFilter
from flywheel_feature.offline.joins.stored_join import StoredView
from flywheel_feature.offline.model import JoinMode
from flywheel_feature.online.read_plan import plan_of_features
from flywheel_feature.tables.sources import SourceReader
from tests.support.builders.feature_units import UTC_MICROSECONDS, at, microseconds, object_array
from tests.support.builders.jobs import RecordingJob
from tests.support.builders.partitioned_joins import JoinInputs, request, without_identity

MINUTES = st.integers(0, 240)
Event = tuple[str, int, int | None, int | None]
"""Key, then the minutes of event time, created time and arrival; None: not known."""
EVENTS = st.lists(
    st.tuples(st.sampled_from("AB"), MINUTES, st.none() | MINUTES, st.none() | MINUTES),
    min_size=1,
    max_size=12,
)
READ_AT = 300
"""The minute of the reads; all events are in the window."""


class StreamLab:
    """A source with an allowed lateness, and a view that counts its events in six hours."""

    def __init__(self, allowed_minutes: int, created: bool) -> None:
        key = Field("k", DataType.STRING)
        fields = [key, Field("at", DataType.TIMESTAMP)] + [Field("made", DataType.TIMESTAMP)] * created
        kind = StreamSource(allowed_lateness=allowed_minutes * 60 * SECOND)
        self.source = Source("p", "events", tuple(fields), "at", "made" * created, kind)
        windows = (Aggregation("n", AggregationFunction.COUNT, "", 6 * HOUR),)
        features = (Feature("n", DataType.INT64),)
        view = StreamView("events", windows, "", 600 * SECOND)
        self.view = View("p", "counts", "e", view, version=1, features=features)
        self.entity = Entity("p", "e", (key,))
        self.catalog = Catalog(
            "p",
            1,
            {"e": self.entity},
            {"events": self.source},
            {self.view.ref: self.view},
            {},
            {"counts": self.view},
        )
        self.online, self.streams, self.tables = MemoryOnlineStore(), MemoryStreams(), MemoryTables()

    def rows(self, events: list[Event], low: int, high: int) -> SourceRows:
        mine = events[low:high]
        present = np.ones(len(mine), np.bool_)
        columns = {"k": (object_array(*(e[0] for e in mine)), present)}
        columns["at"] = microseconds([e[1] for e in mine]), present
        if self.source.created_field:
            columns["made"] = (
                microseconds([e[2] or 0 for e in mine]),
                np.array([e[2] is not None for e in mine]),
            )
        arrived = np.where([e[3] is None for e in mine], 0, microseconds([e[3] or 0 for e in mine]))
        ids = [str(i) for i in range(low, high)]
        return SourceRows(self.source, 0, columns, ids, np.arange(low, high), high, arrived)

    async def apply(self, events: list[Event]) -> None:
        """Apply the events that are not applied yet, in batches, as a process that has just started."""
        tombstones = TombstoneFilter(lambda _: self.catalog, lambda _: {})
        tiles = SourceTiles(self.online)
        archiver = Archiver(self.streams, self.tables, lambda: uuid4().hex, tombstones, self.tables.delete)
        replay = ArchiveReplay(self.streams, self.tables)
        filler = TileFiller(Generations(self.online, self.streams), replay, tiles, tombstones)
        worker = StreamMaterializer(self.streams, self.streams, tiles, archiver, filler)
        low = await worker.begin(self.catalog, self.source, 0)
        for start in range(low, len(events), 5):
            await worker.apply(self.catalog, self.rows(events, start, min(start + 5, len(events))))
        await archiver.flush_all()

    async def count_online(self, key: str) -> int | None:
        plan = plan_of_features(self.catalog, ["counts:n"])
        blobs = await self.online.read(plan.redis_keys([entity_keys([(DataType.STRING, [key])])]))
        values, valid = plan.decode(blobs, microseconds([READ_AT]), {}).columns[0]
        return int(values[0]) if valid[0] else None

    async def count_offline(self, key: str, late: dict[str, int]) -> int | None:
        stored = StoredView(self.view, self.entity, self.source, ("n",))
        reader = SourceReader(self.tables, self.streams)  # type: ignore[arg-type]
        events = await reader.read(self.source, stored.fields)
        spine = pl.DataFrame({"k": [key], "t": [at(READ_AT)]}, schema={"k": pl.String, "t": UTC_MICROSECONDS})
        joined = stored.join(spine, "t", JoinMode.POINT_IN_TIME, stored.kept(events, late))
        return joined.get_column("n")[0]  # type: ignore[no-any-return]


def is_late(event: Event, allowed: int, created: bool) -> bool:
    """The definition in the comment of StreamSource.allowed_lateness."""
    arrived = event[2] if created and event[2] is not None else event[3]
    return arrived is not None and allowed > 0 and arrived - event[1] > allowed


def counted(store: str) -> float:
    labels = {"source": "events", "view": "counts", "store": store}
    return REGISTRY.get_sample_value("flywheel_feature_late_events_total", labels) or 0.0


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.sampled_from([0, 1, 30, 120]), st.booleans())
async def test_the_same_events_are_left_out_online_offline_and_in_a_rebuild(
    events: list[Event], allowed: int, created: bool
) -> None:
    lab = StreamLab(allowed, created)
    before = counted("online")
    await lab.apply(events)
    dropped = sum(is_late(e, allowed, created) for e in events)
    assert dropped == counted("online") - before
    late: dict[str, int] = {}
    for key in "AB":
        wanted = sum(e[0] == key and not is_late(e, allowed, created) for e in events) or None
        assert wanted == await lab.count_online(key) == await lab.count_offline(key, late)
    assert late == ({"projects/p/views/counts/versions/1": 2 * dropped} if dropped else {}), "read twice"
    lab.online = MemoryOnlineStore()
    await lab.apply(events)
    for key in "AB":
        assert await lab.count_online(key) == await lab.count_offline(key, {})


async def test_an_event_counts_up_to_the_allowed_lateness_and_not_beyond() -> None:
    lab = StreamLab(30, created=False)
    await lab.apply([("A", 0, None, 30), ("A", 0, None, 31), ("A", 60, None, 31)])
    assert 2 == await lab.count_online("A")


async def test_history_with_created_times_counts_whenever_it_is_replayed() -> None:
    lab = StreamLab(30, created=True)
    await lab.apply([("A", 0, 10, 240), ("A", 0, 40, 240), ("A", 0, None, 240)])
    assert 1 == await lab.count_online("A") == await lab.count_offline("A", {})


async def test_events_archived_without_an_arrival_time_are_not_late() -> None:
    lab = StreamLab(30, created=False)
    await lab.apply([("A", 0, None, 200)])
    (segment,) = await lab.streams.segments("p", "events")
    lab.tables.write(
        segment.uri,
        lab.tables.read_files([segment.uri], ["k", "at", "__event_id", "__partition", "__offset"]),
    )
    assert 1 == await lab.count_offline("A", {})
    lab.online = MemoryOnlineStore()
    await lab.apply([("A", 0, None, 200)])
    assert 1 == await lab.count_online("A")


@pytest.mark.parametrize("allowed", [0, 30])
async def test_the_archive_keeps_late_events_with_their_arrival(allowed: int) -> None:
    lab = StreamLab(allowed, created=False)
    await lab.apply([("A", 0, None, 200), ("A", 100, None, None)])
    (segment,) = await lab.streams.segments("p", "events")
    arrived = lab.tables.read_files([segment.uri], [ARRIVED]).get_column(ARRIVED).to_list()
    assert [int(microseconds([200])[0]), 0] == arrived


async def test_a_training_set_counts_late_events_in_memory_and_in_partitions() -> None:
    tables = MemoryTables()
    inputs = JoinInputs(tables, "memory")
    landings = replace(inputs.catalog.sources["landings"], kind=StreamSource(allowed_lateness=HOUR))
    all_events = tables.read_files(
        [f"s3://memory/archive/{i}.parquet" for i in range(4)], ["distance", "landed", "known"]
    )
    events = all_events.filter(pl.col("distance") > 0)
    within = await inputs.builder().build(request("any-lateness"), RecordingJob())
    inputs.catalog = replace(inputs.catalog, sources={**inputs.catalog.sources, "landings": landings})
    in_memory = await inputs.builder().build(request("in-memory"), RecordingJob())
    parts = await inputs.builder(MemoryPartitions(tables)).build(request("parts"), RecordingJob())
    assert without_identity(in_memory) == without_identity(parts)
    # An event of these inputs has no created time, or one two hours after its event time.
    newest = pl.from_epoch(pl.lit(in_memory.max_time), "us").dt.replace_time_zone("UTC")
    late = events.filter(pl.col("landed") <= newest, pl.col("known").is_not_null()).height
    assert {"projects/p/views/traffic/versions/1": late} == in_memory.late_events
    assert {} == within.late_events
    assert within.content_hash != in_memory.content_hash
    assert dict(in_memory.late_events) == dict(training_set_to_proto(in_memory).late_events)
