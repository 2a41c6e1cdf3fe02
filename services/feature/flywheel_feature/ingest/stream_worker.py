"""The stream worker: decodes Kafka records of stream sources and passes their rows to the materializer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from prometheus_client import Counter

from flywheel_common.arrays import Ints, Mask
from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.event_time import EventTimeBound
from flywheel_common.kafka.consumer import ConsumerLoop, TopicPartition
from flywheel_common.kafka.poison import PoisonError
from flywheel_common.kafka.record import Record
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.apply.applied import AppliedDefinitions
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Source
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

_AHEAD = Counter(
    "flywheel_feature_events_ahead_of_time",
    "Events that were not applied because their time was after now + max_clock_skew",
    ["source"],
)

WATCH_SECONDS = 2.0
"""Interval of the check for lost data in Redis, which works also while no event arrives."""
READ_TOGETHER = 1000
"""Events of one row each that are decoded together; few enough for the processor's cache."""


class StreamWorker:
    """Handles the records of applied sources; `topic_of(project, source)` is the name of a topic."""

    def __init__(
        self,
        definitions: AppliedDefinitions,
        materializer: StreamMaterializer,
        generations: Generations,
        topic_of: Callable[[str, str], str],
        event_times: EventTimeBound,
    ) -> None:
        self._definitions = definitions
        self._materializer = materializer
        self._generations = generations
        self._topic_of = topic_of
        self._event_times = event_times
        self._loop: ConsumerLoop | None = None
        self._live: frozenset[str] = frozenset()

    def attach(self, loop: ConsumerLoop) -> None:
        """Rewind this loop, which calls `handle` and `positions`, whenever partitions must restart."""
        self._loop = loop
        self._live = self._live_views()
        self._definitions.on_change(self._definitions_changed)

    async def watch(self) -> None:
        """Restart all partitions whenever Redis has lost its data, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            generation = self._materializer.generation
            try:
                if generation and not await self._generations.holds(generation):
                    log.warning(
                        "the online store has lost data; all partitions restart from their stored positions",
                        generation=generation,
                    )
                    self._restart()
            except FlywheelError as error:
                log.warning("the check for lost data in the online store failed", reason=error.reason)

    def _live_views(self) -> frozenset[str]:
        return frozenset(
            v.name
            for c in self._definitions.projects()
            for s in c.sources.values()
            if s.is_stream
            for v in c.stream_views(s.id)
        ) | frozenset(s.name for c in self._definitions.projects() for s in c.sources.values() if s.is_stream)

    def _definitions_changed(self) -> None:
        live = self._live_views()
        added, self._live = live - self._live, live
        if added and self._loop is not None:
            log.info("restarting all partitions for new definitions", views=sorted(added))
            self._loop.rewind()

    def _find(self, topic: str) -> tuple[Catalog, Source] | None:
        for catalog in self._definitions.projects():
            for source in catalog.sources.values():
                if source.is_stream and self._topic_of(catalog.project, source.id) == topic:
                    return catalog, source
        return None

    async def positions(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """Where to start reading assigned partitions; None: at the first record that Kafka has."""
        await self._definitions.refresh()
        found: dict[TopicPartition, int | None] = {}
        for tp in partitions:
            known = self._find(tp.topic)
            offset = await self._materializer.begin(*known, tp.partition) if known is not None else 0
            found[tp] = offset or None
        return found

    async def handle(self, conn: Any, records: Sequence[Record]) -> None:
        """Apply records of one partition.

        Raises PoisonError naming those that cannot be decoded, and the rows with times after now +
        max_clock_skew.
        """
        known = self._find(records[0].topic)
        if known is None:
            await self._definitions.refresh()
            if self._find(records[0].topic) is not None:
                self._restart()
            # The source is not applied: its events are ignored.
            return
        catalog, source = known
        parts, poison, why = _rows_of(records, source)
        if poison:
            raise PoisonError(why, poison)
        ahead, rest, count = _ahead_of_time(records, parts, source, self._event_times.latest())
        if ahead:
            _AHEAD.labels(source.name).inc(count)
            raise PoisonError("the event time is after now + max_clock_skew", ahead, rest)
        if not parts:
            return
        rows = joined(source, records[0].partition, parts, records[-1].offset + 1)
        try:
            await self._materializer.apply(catalog, replace(rows, arrived=_arrived(records, rows.offset)))
        except PositionLost:
            log.warning("another process moved the positions; restarting from them", source=source.name)
            self._restart()

    def _restart(self) -> None:
        if self._loop is not None:
            self._loop.rewind()


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


def _ahead_of_time(
    records: Sequence[Record], parts: Sequence[Part], source: Source, latest: int
) -> tuple[list[Record], list[Record], int]:
    """The rows with times after `latest` as records, the other rows of the same records, and the number of
    the former."""
    ahead: list[Record] = []
    rest: list[Record] = []
    count = 0
    by_offset = {r.offset: r for r in records}
    for offsets, columns, ids in parts:
        late = columns[source.timestamp_field][0] > latest
        count += int(late.sum())
        for offset in np.unique(offsets[late]).tolist():
            own, record = offsets == offset, by_offset[offset]
            if late[own].all():
                ahead.append(record)
                continue
            ahead.append(_with_rows(record, source, columns, ids, own & late))
            rest.append(_with_rows(record, source, columns, ids, own & ~late))
    return ahead, rest, count


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
