"""`ports.Records` and `ports.Store` over a PostgreSQL pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from flywheel_common.errors import Aborted
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, Translation, connection, transaction
from flywheel_registry.audit import first_break
from flywheel_registry.ports import Records
from flywheel_registry.store import rows
from flywheel_registry.store import statements as sql
from flywheel_registry.store.catalog import Catalog
from flywheel_registry.store.ledger import Ledger, ToEvent
from flywheel_registry.store.routes import Routes

TRANSLATE: Translation = {
    "one_production_per_model": Aborted(
        "Another version became the champion meanwhile: read again and retry.", reason="CHAMPION_CHANGED"
    ),
    "one_active_rollout_per_model": Aborted(
        "Another rollout started meanwhile: read again and retry.", reason="ROLLOUT_STARTED"
    ),
    "one_open_span_per_model": Aborted(
        "Another release began to serve meanwhile: read again and retry.", reason="CHAMPION_CHANGED"
    ),
}
"""Constraints that are only hit when somebody changes rows without the model's lock."""


class PostgresRecords(Catalog, Ledger, Routes):
    """`ports.Records` on one connection."""

    def __init__(self, conn: Connection, to_event: ToEvent) -> None:
        self._conn = conn
        self._to_event = to_event


class PostgresStore:
    """`ports.Store` on a pool. `to_event` turns domain events into envelopes."""

    def __init__(self, pool: Pool, to_event: ToEvent) -> None:
        self._pool = pool
        self._to_event = to_event

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresRecords]:
        async with transaction(self._pool, translate=TRANSLATE) as conn:
            yield PostgresRecords(conn, self._to_event)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresRecords]:
        async with connection(self._pool) as conn:
            yield PostgresRecords(conn, self._to_event)

    async def once(
        self, method: str, request_id: str, body: bytes, effect: Callable[[Records], Awaitable[bytes]]
    ) -> bytes:
        async with (
            transaction(self._pool, translate=TRANSLATE) as conn,
            idempotent(conn, method, request_id, body) as once,
        ):
            if once.replay is not None:
                return once.replay
            answer = await effect(PostgresRecords(conn, self._to_event))
            once.store(answer)
        return answer

    async def ready(self) -> bool:
        """Whether the database answers."""
        async with connection(self._pool) as conn:
            return bool(await conn.fetchval("SELECT true"))

    async def broken_audits(self) -> list[str]:
        """One sentence per model whose audit chain does not hold; empty when all do."""
        broken = []
        async with connection(self._pool) as conn:
            for row in await conn.fetch(sql.AUDITED_MODELS):
                entries, after = [], 0
                while batch := await conn.fetch(sql.WHOLE_AUDIT, row["model"], after):
                    entries += [rows.audit_entry(r) for r in batch]
                    after = batch[-1]["sequence"]
                if found := first_break(row["model"], entries):
                    broken.append(found)
        return broken
