"""The stream worker: decodes Kafka records of stream sources and passes their rows to the materializer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from prometheus_client import Counter

from flywheel_common.arrays import Ints, Mask
from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.event_time import EventTimeBound
from flywheel_common.kafka.claimed_consumer import ClaimedConsumer, TopicPartition
from flywheel_common.kafka.poison import PoisonError
from flywheel_common.kafka.record import Record
from flywheel_common.kafka.topics import TopicSpec
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.apply.applied import AppliedDefinitions
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Source, StreamView
from flywheel_feature.encoding.event_payloads import (
    carries_one,
    from_event,
    from_single_events,
    to_event,
)
from flywheel_feature.encoding.frames import Columns, take_rows
from flywheel_feature.ingest.generations import Generations
from flywheel_feature.ingest.source_rows import Part, joined
from flywheel_feature.ingest.stream_materialization import StreamMaterializer
from flywheel_feature.ingest.tile_store import PositionLost

log = get_logger(__name__)

_OUT_OF_RANGE = Counter(
    "flywheel_feature_events_out_of_range",
    "Events that were not applied because their time was after now + max_clock_skew, or never set",
    ["source"],
)

WATCH_SECONDS = 2.0
"""Interval of the check for lost data in Redis."""
READ_TOGETHER = 1000
"""Events of one row each that are decoded together; few enough for the processor's cache."""


class StreamWorker:
    """Handles the records of applied sources; `topic_of(source)` is the topic of one."""

    def __init__(
        self,
        definitions: AppliedDefinitions,
        materializer: StreamMaterializer,
        generations: Generations,
        topic_of: Callable[[Source], TopicSpec],
        event_times: EventTimeBound,
    ) -> None:
        self._definitions = definitions
        self._materializer = materializer
        self._generations = generations
        self._topic_of = topic_of
        self._event_times = event_times
        self._consumer: ClaimedConsumer | None = None
        self._streams: dict[str, _Stream] = self._read_streams()

    def attach(self, consumer: ClaimedConsumer) -> None:
        """Restart the partitions of this consumer, which calls the methods below, when they must restart. It
        replaces an earlier consumer."""
        if self._consumer is None:
            self._definitions.on_change(self._definitions_changed)
            self._materializer.on_lost(self._restart)
        self._consumer = consumer

    async def watch(self) -> None:
        """Call `restart_lost` every WATCH_SECONDS, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self.restart_lost()
            except FlywheelError as error:
                log.warning("the check for lost data in the online store failed", reason=error.reason)

    async def restart_lost(self) -> None:
        """Restart the partitions whose generation has ended: their positions and tiles count as absent.

        Records that arrive would show it too, but a partition may get none for long. Partitions that begin
        while a generation ends may be in different ones, so that each is compared. Raises Unavailable.
        """
        if self._consumer is None or not self._consumer.assigned:
            return
        marked = await self._generations.marked()
        lost = [tp for tp in self._consumer.assigned if self._generation(tp) not in (None, marked)]
        if lost:
            log.warning(
                "the online store has lost data; partitions restart from their stored positions",
                generation=marked,
                partitions=[f"{tp.topic}/{tp.partition}" for tp in lost],
            )
            self._consumer.restart(lost)

    def _generation(self, partition: TopicPartition) -> int | None:
        """The generation in which a partition began; None when its source was deleted."""
        stream = self._streams.get(partition.topic)
        return self._materializer.generation(stream.source, partition.partition) if stream else None

    def topics(self) -> list[TopicSpec]:
        """The topics of all applied stream sources."""
        return [stream.topic for stream in self._streams.values()]

    def _read_streams(self) -> dict[str, _Stream]:
        """Topic name → stream, for all applied stream sources."""
        streams = {}
        for catalog in self._definitions.projects():
            views: dict[str, list[str]] = {}
            for view in catalog.live_views():
                if isinstance(view.kind, StreamView):
                    views.setdefault(view.kind.source, []).append(view.name)
            for source in catalog.sources.values():
                if source.is_stream:
                    topic = self._topic_of(source)
                    streams[topic.name] = _Stream(catalog, source, topic, frozenset(views.get(source.id, ())))
        return streams

    def _definitions_changed(self) -> None:
        before, self._streams = self._streams, self._read_streams()
        if self._consumer is None:
            return
        # A new view takes the earlier events of its source from the archive.
        grown = {t for t, s in self._streams.items() if t in before and s.views - before[t].views}
        if grown:
            log.info("restarting the partitions of sources with new views", topics=sorted(grown))
            self._consumer.restart_topics(grown)
        if self._streams.keys() != before.keys():
            self._consumer.topics_changed()

    async def begin(self, partition: TopicPartition) -> int:
        """Where to start reading a claimed partition."""
        stream = self._streams.get(partition.topic)
        if stream is None:
            return 0
        return await self._materializer.begin(stream.catalog, stream.source, partition.partition)

    async def end(self, partition: TopicPartition) -> None:
        """Finish a partition that another worker takes over."""
        stream = self._streams.get(partition.topic)
        if stream is not None:
            await self._materializer.end(stream.source, partition.partition)

    async def handle(self, conn: Any, records: Sequence[Record]) -> None:
        """Apply records of one partition.

        Raises PoisonError naming those that cannot be decoded, and the rows with times after now +
        max_clock_skew.
        """
        stream = self._streams.get(records[0].topic)
        if stream is None:
            # The source was deleted: its events are ignored.
            return
        catalog, source = stream.catalog, stream.source
        parts, poison, why = _rows_of(records, source)
        if poison:
            raise PoisonError(why, poison)
        wrong, rest, count = _out_of_range(records, parts, source, self._event_times)
        if wrong:
            _OUT_OF_RANGE.labels(source.name).inc(count)
            raise PoisonError("the event time is after now + max_clock_skew, or was never set", wrong, rest)
        if not parts:
            return
        rows = joined(source, records[0].partition, parts, records[-1].offset + 1)
        try:
            await self._materializer.apply(catalog, replace(rows, arrived=_arrived(records, rows.offset)))
        except PositionLost:
            log.warning("another process moved the positions; restarting from them", source=source.name)
            self._restart(source, records[0].partition)

    async def skip(self, partition: TopicPartition, next_offset: int) -> None:
        """Move the positions past poison records, so that they do not count as waiting."""
        stream = self._streams.get(partition.topic)
        if stream is None:
            return
        try:
            await self._materializer.skip(stream.catalog, stream.source, partition.partition, next_offset)
        except PositionLost:
            self._restart(stream.source, partition.partition)

    def _restart(self, source: Source, partition: int) -> None:
        if self._consumer is not None:
            self._consumer.restart([TopicPartition(self._topic_of(source).name, partition)])


@dataclass(frozen=True, slots=True)
class _Stream:
    """An applied stream source with its project."""

    catalog: Catalog
    source: Source
    topic: TopicSpec
    views: frozenset[str]
    """The names of its live views."""


def _arrived(records: Sequence[Record], offset: Ints) -> Ints:
    """[n] when Kafka stored the records at these offsets, microseconds. `records` are in order."""
    times = np.array([r.timestamp_ms for r in records], np.int64) * 1000
    found: Ints = times[np.searchsorted(np.array([r.offset for r in records], np.int64), offset)]
    return found


def _rows_of(records: Sequence[Record], source: Source) -> tuple[list[Part], list[Record], str]:
    """The rows of the records in order, the poison records, and the error of the last of these."""
    parts: list[Part] = []
    poison: list[Record] = []
    why = ""
    for single, together in groupby(records, _is_single):
        run = list(together)
        size = READ_TOGETHER if single else 1
        for low in range(0, len(run), size):
            for found in _read(run[low : low + size], source):
                if isinstance(found, _Poison):
                    poison.append(found.record)
                    why = found.why
                else:
                    parts.append(found)
    return parts, poison, why


@dataclass(frozen=True, slots=True)
class _Poison:
    record: Record
    why: str


def _read(run: list[Record], source: Source) -> Iterator[Part | _Poison]:
    """Decode records together; a poison record among them is found by bisection."""
    events = [r.event for r in run if r.event is not None]
    try:
        columns, ids = from_event(events[0], source) if len(run) == 1 else from_single_events(events, source)
    except InvalidArgument as error:
        if len(run) == 1:
            yield _Poison(run[0], error.message)
            return
        middle = len(run) // 2
        yield from _read(run[:middle], source)
        yield from _read(run[middle:], source)
    else:
        offsets = [r.offset for r in run] if len(run) > 1 else [run[0].offset] * len(ids)
        yield np.array(offsets, np.int64), columns, ids


def _out_of_range(
    records: Sequence[Record], parts: Sequence[Part], source: Source, event_times: EventTimeBound
) -> tuple[list[Record], list[Record], int]:
    """The rows with refused times as records, the other rows of the same records, and the number of the
    former."""
    wrong: list[Record] = []
    rest: list[Record] = []
    count = 0
    by_offset = {r.offset: r for r in records}
    for offsets, columns, ids in parts:
        refused = event_times.out_of_range(columns[source.timestamp_field][0])
        count += int(refused.sum())
        for offset in np.unique(offsets[refused]).tolist():
            own, record = offsets == offset, by_offset[offset]
            if refused[own].all():
                wrong.append(record)
                continue
            wrong.append(_with_rows(record, source, columns, ids, own & refused))
            rest.append(_with_rows(record, source, columns, ids, own & ~refused))
    return wrong, rest, count


def _with_rows(record: Record, source: Source, columns: Columns, ids: Sequence[str], keep: Mask) -> Record:
    """The record with only the rows that `keep` selects."""
    event = to_event(
        source, take_rows(columns, keep), [ids[i] for i in np.flatnonzero(keep).tolist()], record.partition
    )
    if record.event is not None:
        event.id = record.event.id
    return replace(record, value=event.SerializeToString(), event=event)


def _is_single(record: Record) -> bool:
    return record.event is not None and carries_one(record.event)
