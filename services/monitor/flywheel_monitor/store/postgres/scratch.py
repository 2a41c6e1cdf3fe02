"""Scratch states of replays: a schema of their own in the monitor's database, deleted at the end.

The same code as in the live schema counts there, so that equal records give equal panes. What is stored is
copied in one snapshot with the positions of the consumer, which change with it in one transaction.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

from flywheel_common.errors import FlywheelError
from flywheel_common.event_time import EventTimeBound
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import parse_event, payload_of
from flywheel_common.kafka.poison import Batch, PoisonError
from flywheel_common.kafka.record import Record
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_common.value import EPOCH
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.ingest.consumer import EventHandler
from flywheel_monitor.references.errors import ReferencePending
from flywheel_monitor.replay.difference import Difference
from flywheel_monitor.replay.errors import ReplayRunning
from flywheel_monitor.replay.ports import Positions
from flywheel_monitor.store.postgres.pool import monitor_pool
from flywheel_monitor.store.postgres.records import PostgresStore
from flywheel_monitor.store.postgres.versions import VersionCache
from flywheel_monitor.windows.span import Span
from flywheel_protos.events.v1 import prediction_pb2

SCHEMA = "flywheel_monitor_replay"
_LOCK = 0x666C_7270  # "flrp"
STATEMENT_SECONDS = 600.0
REPORTS_AT_ONCE = 100

_PANES = """
SELECT v.name AS version, t.release, t.rollout, t.role, t.generation, p.partition, p.segment, p.width_us,
    p.start_us, p.predictions, md5(p.counts || p.sums) AS digest
FROM {schema}.pane p JOIN {schema}.variant t ON t.id = p.variant_id
    JOIN {schema}.model_version v ON v.id = t.model_version_id JOIN {schema}.model m ON m.id = v.model_id
WHERE m.name = $1 AND p.start_us >= $2 AND p.start_us + p.width_us <= $3
    AND (p.width_us > $4 OR p.start_us >= v.minutes_from_us)
"""
_COPY = """
CREATE TABLE stored_pane (version text, release text, rollout text, role smallint, generation bigint,
    partition smallint, segment text, width_us bigint, start_us bigint, predictions bigint, digest text);
CREATE TABLE stored_report (model_version_id integer, end_us bigint, start_us bigint, report jsonb);
"""
# The columns are named: migrations that were applied in another order have put them into another.
_COLUMNS = """
SELECT string_agg(quote_ident(column_name), ', ') FROM information_schema.columns
WHERE table_schema = $1 AND table_name = $2
"""
_COPY_MODEL = """
INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {live}.{table} WHERE name = $1
"""
_COPY_VERSIONS = """
INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {live}.{table}
WHERE model_id = (SELECT id FROM model WHERE name = $1)
"""
_COPY_REPORTS = """
INSERT INTO stored_report SELECT r.model_version_id, r.end_us, r.start_us, r.report
FROM {live}.window_report r JOIN model_version v ON v.id = r.model_version_id
WHERE r.start_us >= $1 AND r.end_us <= $2 AND r.predictions > 0
"""
_POSITIONS = """
SELECT topic, partition, next_offset FROM {live}.consumer_offset
WHERE consumer_group = $1 AND topic = ANY($2::text[]) AND next_offset IS NOT NULL
"""
_COMPARED = """
SELECT version, start_us, width_us, release, rollout, role, segment, partition,
    s.predictions AS stored, r.predictions AS replayed,
    (s.digest, s.predictions) IS NOT DISTINCT FROM (r.digest, r.predictions) AS equal
FROM stored_pane s FULL JOIN ({replayed}) r
    USING (version, release, rollout, role, generation, partition, segment, width_us, start_us)
"""
_DIFFERENCES = "SELECT * FROM ({compared}) c WHERE NOT equal ORDER BY version, start_us, width_us LIMIT $5"
_COUNT = "SELECT count(*) FROM ({compared}) c"
_REPORTS = """
SELECT model_version_id, end_us, start_us, report FROM stored_report
WHERE (model_version_id, end_us, start_us) > ($1, $2, $3)
ORDER BY model_version_id, end_us, start_us LIMIT $4
"""
_CONSUMED = (topics.PREDICTION_LOGGED, topics.OUTCOME_RECORDED)


class PostgresScratchStates:
    """`ScratchStates`. `group` is the consumer group whose positions count."""

    def __init__(
        self,
        pool: Pool,
        dsn: str,
        migrations: Path,
        *,
        group: str,
        pane_us: int,
        skew_seconds: float,
        partitions: int,
    ) -> None:
        self._pool = pool
        self._dsn = dsn
        self._migrations = migrations
        self._group = group
        self._pane_us = pane_us
        self._skew = skew_seconds
        self._partitions = partitions

    @asynccontextmanager
    async def open(self, model: str, start_us: int, end_us: int) -> AsyncIterator[PostgresScratch]:
        async with connection(self._pool) as lock:
            if not await lock.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                raise ReplayRunning("Another replay runs: there is one scratch state.")
            try:
                live = str(await lock.fetchval("SELECT current_schema()"))
                # One that a crash left behind is deleted first.
                await lock.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}")
                async with monitor_pool(
                    _in_schema(self._dsn),
                    application_name="flywheel-monitor-replay",
                    max_size=4,
                    statement_timeout_seconds=STATEMENT_SECONDS,
                ) as pool:
                    await migrate(pool, self._migrations)
                    positions = await self._copy(pool, live, model, Span(start_us, end_us))
                    versions = VersionCache(pool, _NoReferences())
                    store = PostgresStore(pool, versions, self._pane_us, self._partitions)
                    yield PostgresScratch(
                        pool, store, model, Span(start_us, end_us), self._pane_us, self._skew, positions
                    )
            finally:
                if not lock.is_closed():
                    await lock.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
                    await lock.execute("SELECT pg_advisory_unlock($1)", _LOCK)

    async def _copy(self, pool: Pool, live: str, model: str, span: Span) -> Positions:
        async with transaction(pool, isolation="repeatable_read") as conn:
            await conn.execute(_COPY)
            for table, statement in (("model", _COPY_MODEL), ("model_version", _COPY_VERSIONS)):
                columns = await conn.fetchval(_COLUMNS, live, table)
                await conn.execute(statement.format(table=table, columns=columns, live=live), model)
            panes = "INSERT INTO stored_pane " + _PANES.format(schema=live)
            await conn.execute(panes, model, span.start_us, span.end_us, self._pane_us)
            await conn.execute(_COPY_REPORTS.format(live=live), span.start_us, span.end_us)
            rows = await conn.fetch(_POSITIONS.format(live=live), self._group, list(_CONSUMED))
        return {(r["topic"], r["partition"]): r["next_offset"] for r in rows}


class PostgresScratch:
    """`Scratch` in its schema."""

    def __init__(
        self,
        pool: Pool,
        store: PostgresStore,
        model: str,
        span: Span,
        pane_us: int,
        skew_seconds: float,
        positions: Positions,
    ) -> None:
        self._pool = pool
        self._model = model
        self._span = span
        self._pane_us = pane_us
        self._arrival = _ArrivalClock()
        self.positions = positions
        self.store = store
        self._handler = EventHandler(self.store.on, EventTimeBound(self._arrival, skew_seconds))

    async def take(self, records: Sequence[Record]) -> None:
        mine = [record for record in records if _is_of(record, self._model)]
        if not mine:
            return
        # Times that were refused on arrival are no longer in the future today.
        self._arrival.at = EPOCH + timedelta(milliseconds=max(r.timestamp_ms for r in mine))
        batch = Batch(tuple(mine), mine[-1].offset + 1)
        while batch.records:
            try:
                async with transaction(self._pool) as conn:
                    await self._handler.handle(conn, batch.records)
                    await conn.execute("DELETE FROM archive_queue")
                return
            except PoisonError as poison:
                batch = batch.without(poison)

    async def pane_differences(self, limit: int) -> tuple[int, list[Difference]]:
        compared = _COMPARED.format(replayed=_PANES.format(schema=SCHEMA))
        at = (self._model, self._span.start_us, self._span.end_us, self._pane_us)
        async with transaction(self._pool, readonly=True) as conn:
            count = await conn.fetchval(_COUNT.format(compared=compared), *at)
            rows = await conn.fetch(_DIFFERENCES.format(compared=compared), *at, limit)
        return int(count), [
            Difference(r["version"], Span(r["start_us"], r["start_us"] + r["width_us"]), _pane_text(r))
            for r in rows
        ]

    async def reports(self) -> AsyncIterator[Report]:
        after = (0, 0, 0)
        while True:
            async with transaction(self._pool, readonly=True) as conn:
                rows = await conn.fetch(_REPORTS, *after, REPORTS_AT_ONCE)
            if not rows:
                return
            after = rows[-1]["model_version_id"], rows[-1]["end_us"], rows[-1]["start_us"]
            for row in rows:
                yield Report.from_json(json.loads(row["report"]))


@dataclass
class _ArrivalClock:
    """The time at which the records that are counted arrived."""

    at: datetime = EPOCH

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


class _NoReferences:
    """`ReferenceSource` for versions that are not known live either: their batches wait there too."""

    async def fetch(self, model_version: str) -> NoReturn:
        raise ReferencePending(f"{model_version} was not counted when the replay began.")

    async def has_model(self, model: str) -> bool:
        return True  # Only records of one model are replayed, and it exists.


def _is_of(record: Record, model: str) -> bool:
    """Whether a record is about the model; parses its event. What cannot be parsed was poison."""
    try:
        record.event = parse_event(record.value)
        if record.topic == topics.PREDICTION_LOGGED:
            batch = payload_of(record.event, prediction_pb2.PredictionBatch)
            return batch.model_version.startswith(f"{model}/versions/")
        return payload_of(record.event, prediction_pb2.OutcomeBatch).model == model
    except FlywheelError:
        return False


def _pane_text(row: Connection) -> str:
    """One line about a pane that differs."""
    name = f"pane of {row['release'] or 'no release'}"
    if row["rollout"]:
        name += f" in {row['rollout']}"
    segment = f", segment {row['segment']!r}" if row["segment"] else ""
    stored, replayed = row["stored"], row["replayed"]
    numbers = "other counts" if stored == replayed else f"{stored or 0} stored, {replayed or 0} replayed"
    return f"{name}, role {row['role']}, partition {row['partition']}{segment}: {numbers}"


def _in_schema(dsn: str) -> str:
    """The DSN, with the scratch schema as the only one that names are looked up in. A crash loses a replay
    anyway, so that commits need not wait for the disk."""
    return f"{dsn}{'&' if '?' in dsn else '?'}search_path={SCHEMA}&synchronous_commit=off"
