"""PushFeatures: rows go to the topic of a stream source, or to a batch view's push log and online.

Every row is checked before anything is written.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_common.errors import Unavailable
from flywheel_common.event_time import EventTimeBound
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Field, Source, View
from flywheel_feature.definitions.value_rules import Report
from flywheel_feature.encoding.errors import RowCountMismatch, ValueOutOfRange
from flywheel_feature.encoding.frames import Columns, take_rows
from flywheel_feature.encoding.keys import entity_keys
from flywheel_feature.encoding.row_checks import check_values, required, row_ids
from flywheel_feature.ingest.ports import Materialized
from flywheel_feature.ingest.row_writer import RowStore, RowWriter
from flywheel_feature.ingest.rule_actions import RuleActions
from flywheel_feature.tables.ports import SeenFile, SeenFiles

log = get_logger(__name__)

MAXIMUM_ID_CHARACTERS = 128
MAXIMUM_RECORD_BYTES = 512 * 1024
"""A larger record is split: by default, brokers reject records over 1 MiB."""
FRESHNESS_STEP = 1_000_000
"""Microseconds of event time by which a view must advance before a push records its freshness again."""

Encode = Callable[[Source, Columns, list[str], int], bytes]
"""The Kafka record of rows of a source with their event ids, for a partition."""


class SourceTopics(Protocol):
    """The topics of stream sources. Raises Unavailable KAFKA_UNAVAILABLE; sent events may be stored then."""

    async def ensure(self, source: Source) -> int:
        """Create the topic if it is missing; returns its number of partitions."""
        ...

    async def send(self, source: Source, events: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
        """Append events (partition, value), in order per partition; returns their (partition, offset)."""
        ...


class RowLog(Protocol):
    """Pushed rows of batch views."""

    async def append(self, view: View, source: Source, columns: Columns, rows: int) -> str:
        """Append rows; returns the uri of their file when they are durable. Raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class PushResult:
    accepted: int
    """Rows."""
    next_offsets: Mapping[int, int]
    """Partition → offset after the rows; empty for a batch view."""
    validation: Report = field(default_factory=Report)


class Pusher:
    """Carries out pushes."""

    def __init__(
        self,
        topics: SourceTopics,
        online: RowStore,
        row_log: RowLog,
        materialized: Materialized,
        encode: Encode,
        rule_actions: RuleActions,
        *,
        seen: SeenFiles,
        event_times: EventTimeBound,
    ) -> None:
        self._topics = topics
        self._online = online
        self._log = row_log
        self._materialized = materialized
        self._newest: dict[str, int] = {}
        self._encode = encode
        self._rule_actions = rule_actions
        self._seen = seen
        self._event_times = event_times

    async def prepare(self, sources: Iterable[Source]) -> None:
        """Create the topics before the first push; while Kafka is down, the first push creates them."""
        try:
            for source in sources:
                await self._topics.ensure(source)
        except Unavailable as error:
            log.warning("topics not created yet; the first push creates them", reason=error.reason)

    async def to_source(
        self, catalog: Catalog, source: Source, columns: Columns, rows: int, event_ids: Sequence[str]
    ) -> PushResult:
        """Push rows to a stream source; returns when Kafka has stored all of them.

        Raises ValueOutOfRange, EventTimeOutOfRange for a time after now + max_clock_skew, PartialRow,
        RowCountMismatch, ValidationFailed, Unavailable.
        """
        _check_rows(source.schema, columns)
        required(columns, [source.timestamp_field], "every event needs its time")
        self._check_times(source, columns)
        ids = _event_ids(source.schema, columns, rows, event_ids)
        kept, report = await self._rule_actions.pushed_to_source(source, columns, rows)
        if kept is not None:
            columns, rows = take_rows(columns, kept), int(kept.sum())
            ids = [event_id for event_id, ok in zip(ids, kept.tolist(), strict=True) if ok]
        if not rows:
            return PushResult(0, {}, report)
        partitions = await self._topics.ensure(source)
        partition_of = np.array(_partitions(catalog, source, columns, ids, partitions))
        events: list[tuple[int, bytes]] = []
        for partition in np.unique(partition_of).tolist():
            places = np.flatnonzero(partition_of == partition)
            events += self._records(source, columns, ids, places, partition)
        next_offsets: dict[int, int] = {}
        for partition, offset in await self._topics.send(source, events):
            next_offsets[partition] = max(offset + 1, next_offsets.get(partition, 0))
        return PushResult(rows, next_offsets, report)

    def _check_times(self, source: Source, columns: Columns) -> None:
        """Raises EventTimeOutOfRange for the first time that is unset or after now + max_clock_skew."""
        times = columns[source.timestamp_field][0]
        wrong = self._event_times.out_of_range(times)
        if wrong.any():
            row = int(np.argmax(wrong))
            self._event_times.check(int(times[row]), f"{source.timestamp_field} of row {row}")

    def _records(
        self, source: Source, columns: Columns, ids: list[str], rows: np.ndarray, partition: int
    ) -> list[tuple[int, bytes]]:
        """The records of rows of one partition: one, or halves where it is too large."""
        value = self._encode(source, take_rows(columns, rows), [ids[i] for i in rows.tolist()], partition)
        if len(value) <= MAXIMUM_RECORD_BYTES or len(rows) == 1:
            return [(partition, value)]
        middle = len(rows) // 2
        return [
            *self._records(source, columns, ids, rows[:middle], partition),
            *self._records(source, columns, ids, rows[middle:], partition),
        ]

    async def to_view(
        self,
        catalog: Catalog,
        view: View,
        source: Source,
        columns: Columns,
        rows: int,
        *,
        offline: bool = True,
        online: bool = True,
    ) -> PushResult:
        """Append rows to the push log of a batch view, then write those online that are newer.

        Rows that are valid after now + max_clock_skew get online when they are due (due_rows.py).

        Raises ValueOutOfRange, PartialRow, ValidationFailed; EventTimeOutOfRange for such rows if they are
        not to be stored offline; Unavailable: a part may have been written then, and repeating the push is
        harmless.
        """
        _check_rows(source.schema, columns)
        keys = [k.name for k in catalog.entity(view.entity).join_keys]
        required(columns, [*keys, source.timestamp_field], "a row needs its join keys and its time")
        kept, report = await self._rule_actions.pushed_to_view(view, source, columns, rows)
        if kept is not None:
            columns, rows = take_rows(columns, kept), int(kept.sum())
        if not rows:
            return PushResult(0, {}, report)
        event, created = _times(source, columns)
        valid_from = np.maximum(event, created)
        is_later = valid_from > self._event_times.latest()
        if is_later.any() and not offline:
            row = int(np.argmax(is_later))
            self._event_times.check(int(valid_from[row]), f"the time of row {row}")
        if offline:
            uri = await self._log.append(view, source, columns, rows)
            if is_later.any() and online:
                due = int(valid_from[is_later].min())
                later = SeenFile("", due, self._event_times.now())
                await self._seen.mark_due(view.project, view.id, view.version, uri, later)
        valid = ~is_later
        if online and valid.any():
            writer = RowWriter(catalog, view)
            columns, event, created = take_rows(columns, valid), event[valid], created[valid]
            by_feature = {f.name: columns[f.field] for f in view.features}
            await writer.write({k: columns[k] for k in keys}, by_feature, event, created, self._online)
            await self._record_freshness(view, int(event.max()))
        return PushResult(rows, {}, report)

    async def _record_freshness(self, view: View, newest: int) -> None:
        if newest > self._newest.get(view.name, 0) + FRESHNESS_STEP:
            await self._materialized.done(view.project, view.id, view.version, newest + 1, newest)
            self._newest[view.name] = newest


def _times(source: Source, columns: Columns) -> tuple[Ints, Ints]:
    """[n] event times and [n] created times of rows of a batch source, microseconds."""
    event = columns[source.timestamp_field][0].astype(np.int64)
    if not source.created_field:
        return event, event
    given, valid = columns[source.created_field]
    return event, np.where(valid, given, event).astype(np.int64)


def _check_rows(fields: Sequence[Field], columns: Columns) -> None:
    for f in fields:
        check_values(f, *columns[f.name])


def _event_ids(fields: Sequence[Field], columns: Columns, rows: int, given: Sequence[str]) -> list[str]:
    """The ids that the caller gives, or ids computed from the rows."""
    if not given:
        return row_ids(fields, columns, rows)
    if len(given) != rows:
        raise RowCountMismatch(f"{len(given)} event ids for {rows} rows: give one per row or none.")
    for event_id in given:
        if not 0 < len(event_id) <= MAXIMUM_ID_CHARACTERS:
            message = f"An event id has 1 to {MAXIMUM_ID_CHARACTERS} characters."
            raise ValueOutOfRange(message, field="event_ids")
    return list(given)


def _partitions(
    catalog: Catalog, source: Source, columns: Columns, ids: Sequence[str], partitions: int
) -> list[int]:
    """The partition of each row.

    It is chosen by the entity of the first view that reads the source, so that the events of an entity stay
    in one partition; by event id without such a view, or when a join key is null.
    """
    views = sorted(catalog.stream_views(source.id), key=lambda v: v.ref)
    if views:
        keys = catalog.entity(views[0].entity).join_keys
        valid = np.logical_and.reduce([columns[k.name][1] for k in keys])
        if valid.all():
            names = entity_keys([(k.data_type, columns[k.name][0].tolist()) for k in keys])
            return [zlib.crc32(n) % partitions for n in names]
    return [zlib.crc32(i.encode()) % partitions for i in ids]
