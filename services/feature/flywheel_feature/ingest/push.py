"""PushFeatures: rows to a stream source's topic, or to a batch view online. Everything is checked before
anything is written."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from flywheel_common.errors import InvalidArgument, Unavailable
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import BatchView, Field, Source, View
from flywheel_feature.definitions.ttl import row_lifetime_ms
from flywheel_feature.definitions.value_rules import Report
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.encoding.keys import entity_keys, key_prefix
from flywheel_feature.encoding.row_checks import check_values, required, row_ids
from flywheel_feature.encoding.row_encoding import RowLayout
from flywheel_feature.ingest.rule_actions import RuleActions

log = get_logger(__name__)

MAXIMUM_ID_CHARACTERS = 128
MAXIMUM_RECORD_BYTES = 512 * 1024
"""A record of more is split: brokers refuse records beyond 1 MiB by default."""

SHOWN_MICROSECONDS = 1_000_000
"""Freshness of a view is told in steps of so much event time."""

Encode = Callable[[Source, Columns, list[str], int], bytes]


class Topics(Protocol):
    """Raises Unavailable KAFKA_UNAVAILABLE; then an event that was sent may be there or not."""

    async def ensure(self, source: Source) -> int:
        """The topic is there; its number of partitions."""
        ...

    async def send(self, source: Source, events: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
        """(partition, value) each; answers (partition, offset) once they are durable. Events of a partition
        keep their order."""
        ...


class Log(Protocol):
    async def append(self, view: View, source: Source, columns: Columns, rows: int) -> None:
        """Durable when it returns. Raises Unavailable."""
        ...


class Shown(Protocol):
    async def done(self, project: str, view: str, version: int, end_time: int, newest: int) -> None:
        """The newest event time online of a view version; never back."""
        ...


class Rows(Protocol):
    async def write_rows(self, keys: Sequence[bytes], rows: Sequence[bytes], lifetime_ms: int) -> int:
        """Each row unless one with an equal or later (event time, created time) is there; how many were
        written."""
        ...


@dataclass(frozen=True, slots=True)
class PushResult:
    accepted: int
    next_offsets: Mapping[int, int]
    """Partition → position after the rows; empty for a batch view."""
    validation: Report = field(default_factory=Report)


class Pusher:
    def __init__(
        self, topics: Topics, online: Rows, log: Log, shown: Shown, encode: Encode, validating: RuleActions
    ) -> None:
        self._topics = topics
        self._online = online
        self._log = log
        self._shown = shown
        self._newest: dict[str, int] = {}
        self._encode = encode
        self._validating = validating

    async def prepare(self, sources: Iterable[Source]) -> None:
        """Topics are made now rather than at the first push; Kafka may be away, then it happens then."""
        try:
            for source in sources:
                await self._topics.ensure(source)
        except Unavailable as error:
            log.warning("topics are made later", reason=error.reason)

    async def to_source(
        self, catalog: Catalog, source: Source, columns: Columns, rows: int, event_ids: Sequence[str]
    ) -> PushResult:
        """Returns once Kafka has every row. Raises InvalidArgument OUT_OF_RANGE, PARTIAL_ROW,
        ROW_COUNT_MISMATCH; Unavailable."""
        check_rows(source.schema, columns)
        required(columns, [source.timestamp_field], "every event needs its time")
        ids = _ids(source.schema, columns, rows, event_ids)
        kept, report = await self._validating.pushed_to_source(source, columns, rows)
        if kept is not None:
            columns, rows = pick(columns, kept), int(kept.sum())
            ids = [event_id for event_id, ok in zip(ids, kept.tolist(), strict=True) if ok]
        if not rows:
            return PushResult(0, {}, report)
        partitions = await self._topics.ensure(source)
        places = np.array(_partitions(catalog, source, columns, ids, partitions))
        events: list[tuple[int, bytes]] = []
        for partition in np.unique(places).tolist():
            events += self._records(source, columns, ids, np.flatnonzero(places == partition), partition)
        following: dict[int, int] = {}
        for partition, offset in await self._topics.send(source, events):
            following[partition] = max(offset + 1, following.get(partition, 0))
        return PushResult(rows, following, report)

    def _records(
        self, source: Source, columns: Columns, ids: list[str], rows: np.ndarray, partition: int
    ) -> list[tuple[int, bytes]]:
        value = self._encode(source, pick(columns, rows), [ids[i] for i in rows.tolist()], partition)
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
        """Appends rows to the view's push log, then writes them online unless newer ones are there.

        Raises InvalidArgument OUT_OF_RANGE, PARTIAL_ROW; Unavailable: then some of it may have happened, and
        a repetition is harmless.
        """
        check_rows(source.schema, columns)
        keys = [k.name for k in catalog.entity(view.entity).join_keys]
        required(columns, [*keys, source.timestamp_field], "a row needs its join keys and its time")
        kept, report = await self._validating.pushed_to_view(view, source, columns, rows)
        if kept is not None:
            columns, rows = pick(columns, kept), int(kept.sum())
        if rows and offline:
            await self._log.append(view, source, columns, rows)
        if rows and online:
            writer = RowWriter(catalog, view)
            event = columns[source.timestamp_field][0].astype(np.int64)
            created = event
            if source.created_field:
                given, valid = columns[source.created_field]
                created = np.where(valid, given, event).astype(np.int64)
            by_feature = {f.name: columns[f.field] for f in view.features}
            await writer.write({k: columns[k] for k in keys}, by_feature, event, created, self._online)
            await self._show(view, int(event.max()))
        return PushResult(rows, {}, report)

    async def _show(self, view: View, newest: int) -> None:
        if newest > self._newest.get(view.name, 0) + SHOWN_MICROSECONDS:
            await self._shown.done(view.project, view.id, view.version, newest + 1, newest)
            self._newest[view.name] = newest


class RowWriter:
    """Packs rows of a batch view and writes them; used by pushes and by materialization."""

    def __init__(self, catalog: Catalog, view: View) -> None:
        assert isinstance(view.kind, BatchView)
        self._keys: tuple[Field, ...] = catalog.entity(view.entity).join_keys
        self._prefix = key_prefix(view)
        self._layout = RowLayout(view.features)
        self._lifetime_ms = row_lifetime_ms(view.ttl)

    async def write(
        self, keys: Columns, features: Columns, event: np.ndarray, created: np.ndarray, online: Rows
    ) -> int:
        """How many rows were newer than what was there. No key is null."""
        names = entity_keys([(k.data_type, keys[k.name][0].tolist()) for k in self._keys])
        rows = self._layout.encode(features, event, created)
        return await online.write_rows([self._prefix + n for n in names], rows, self._lifetime_ms)


def pick(columns: Columns, rows: np.ndarray) -> Columns:
    """Some rows of columns."""
    return {name: (v[rows], m[rows]) for name, (v, m) in columns.items()}


def check_rows(fields: Sequence[Field], columns: Columns) -> None:
    for f in fields:
        check_values(f, *columns[f.name])


def _ids(fields: Sequence[Field], columns: Columns, rows: int, given: Sequence[str]) -> list[str]:
    if not given:
        return row_ids(fields, columns, rows)
    if len(given) != rows:
        raise InvalidArgument(
            f"{len(given)} event ids for {rows} rows: give one per row or none.", reason="ROW_COUNT_MISMATCH"
        )
    for event_id in given:
        if not 0 < len(event_id) <= MAXIMUM_ID_CHARACTERS:
            raise InvalidArgument(
                f"An event id has 1 to {MAXIMUM_ID_CHARACTERS} characters.",
                reason="OUT_OF_RANGE",
                field="event_ids",
            )
    return list(given)


def _partitions(
    catalog: Catalog, source: Source, columns: Columns, ids: Sequence[str], partitions: int
) -> list[int]:
    """By the entity of the first view that reads the source, so that an entity's events stay together; else
    by event id."""
    views = sorted(catalog.stream_views(source.id), key=lambda v: v.ref)
    if views:
        keys = catalog.entity(views[0].entity).join_keys
        valid = np.logical_and.reduce([columns[k.name][1] for k in keys])
        if valid.all():
            names = entity_keys([(k.data_type, columns[k.name][0].tolist()) for k in keys])
            return [zlib.crc32(n) % partitions for n in names]
    return [zlib.crc32(i.encode()) % partitions for i in ids]
