"""`ports.Records` and `ports.Store` over a PostgreSQL pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_monitor.ports import Records
from flywheel_monitor.store.alert_rows import AlertRows
from flywheel_monitor.store.answer_rows import AnswerRows
from flywheel_monitor.store.archive_rows import ArchiveRows
from flywheel_monitor.store.ingest import IngestRows
from flywheel_monitor.store.report_rows import ReportRows
from flywheel_monitor.store.versions import VersionRows, Versions


class PostgresRecords(VersionRows, IngestRows, AnswerRows, ArchiveRows, ReportRows, AlertRows):
    """`ports.Records` on one connection."""

    def __init__(self, conn: Connection, versions: Versions, pane_us: int) -> None:
        self._conn = conn
        self._versions = versions
        self._pane_us = pane_us


class PostgresStore:
    """`ports.Store` on a pool. Panes are `pane_us` wide."""

    def __init__(self, pool: Pool, versions: Versions, pane_us: int) -> None:
        self._pool = pool
        self._versions = versions
        self._pane_us = pane_us

    def on(self, conn: Connection) -> PostgresRecords:
        """Records of a transaction that somebody else began."""
        return PostgresRecords(conn, self._versions, self._pane_us)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresRecords]:
        async with transaction(self._pool) as conn:
            yield self.on(conn)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresRecords]:
        async with connection(self._pool) as conn:
            yield self.on(conn)

    async def once(
        self, method: str, request_id: str, body: bytes, effect: Callable[[Records], Awaitable[bytes]]
    ) -> bytes:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, method, request_id, body) as once,
        ):
            if once.replay is not None:
                return once.replay
            answer = await effect(self.on(conn))
            once.store(answer)
        return answer

    async def ready(self) -> bool:
        """Whether the database answers."""
        async with connection(self._pool) as conn:
            return bool(await conn.fetchval("SELECT true"))
