"""All ports of rows over a PostgreSQL pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from flywheel_common.kafka.topics import DEFAULT_PARTITIONS
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_monitor.store.postgres.alerts import AlertRows
from flywheel_monitor.store.postgres.archive_queue import ArchiveRows
from flywheel_monitor.store.postgres.comparisons import ComparisonRows
from flywheel_monitor.store.postgres.experiments import ExperimentRows
from flywheel_monitor.store.postgres.late import LateRows
from flywheel_monitor.store.postgres.pane_cache import PaneCache
from flywheel_monitor.store.postgres.panes import adopt_panes
from flywheel_monitor.store.postgres.predictions import PredictionRows
from flywheel_monitor.store.postgres.reports import ReportRows
from flywheel_monitor.store.postgres.versions import VersionCache, VersionRows
from flywheel_monitor.store.postgres.waiting import WaitingRows


class PostgresRecords(
    VersionRows,
    PredictionRows,
    ComparisonRows,
    ArchiveRows,
    ReportRows,
    AlertRows,
    LateRows,
    WaitingRows,
    ExperimentRows,
):
    """Every port of rows on one connection; its changes commit together or not at all."""

    def __init__(
        self, conn: Connection, versions: VersionCache, pane_us: int, partitions: int, pane_cache: PaneCache
    ) -> None:
        self._conn = conn
        self._versions = versions
        self._pane_us = pane_us
        self._partitions = partitions
        self._pane_cache = pane_cache
        self._variants_of = {}


class PostgresStore:
    """`Store` on a pool. Panes are `pane_us` wide; topics have so many `partitions`."""

    def __init__(
        self, pool: Pool, versions: VersionCache, pane_us: int, partitions: int = DEFAULT_PARTITIONS
    ) -> None:
        self._pool = pool
        self._versions = versions
        self._pane_us = pane_us
        self._partitions = partitions
        self._pane_cache = PaneCache()

    def on(self, conn: Connection) -> PostgresRecords:
        """Records on a connection whose transaction the caller manages."""
        return PostgresRecords(conn, self._versions, self._pane_us, self._partitions, self._pane_cache)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresRecords]:
        async with transaction(self._pool) as conn:
            yield self.on(conn)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresRecords]:
        async with connection(self._pool) as conn:
            yield self.on(conn)

    async def once(
        self, method: str, request_id: str, body: bytes, effect: Callable[[PostgresRecords], Awaitable[bytes]]
    ) -> bytes:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, method, request_id, body) as once,
        ):
            if once.replay is not None:
                return once.replay
            response = await effect(self.on(conn))
            once.store(response)
        return response

    async def adopt_panes(self) -> None:
        """Finish the migration of panes, which needs their width."""
        async with transaction(self._pool) as conn:
            await adopt_panes(conn, self._pane_us)

    async def ready(self) -> bool:
        """Whether the database responds."""
        async with connection(self._pool) as conn:
            return bool(await conn.fetchval("SELECT true"))
