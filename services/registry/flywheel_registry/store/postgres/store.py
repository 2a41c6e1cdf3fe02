"""All records of the registry in one PostgreSQL transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, Translation, connection, transaction
from flywheel_registry.audit.chain import AuditHead
from flywheel_registry.audit.verification import audit_faults
from flywheel_registry.models.errors import ConcurrentChampionChange
from flywheel_registry.rollouts.errors import ConcurrentRolloutStart
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.store.postgres import rows
from flywheel_registry.store.postgres import statements as sql
from flywheel_registry.store.postgres.audit import PostgresAudit, ToEvent
from flywheel_registry.store.postgres.releases import PostgresReleases
from flywheel_registry.store.postgres.rollouts import PostgresRollouts
from flywheel_registry.store.postgres.serving import PostgresServing
from flywheel_registry.store.postgres.webhooks import PostgresWebhooks

CONSTRAINT_ERRORS: Translation = {
    "one_production_per_model": ConcurrentChampionChange(
        "Another version became the champion meanwhile: read again and retry."
    ),
    "one_active_rollout_per_model": ConcurrentRolloutStart(
        "Another rollout started meanwhile: read again and retry."
    ),
    "one_open_span_per_model": ConcurrentChampionChange(
        "Another release began to serve meanwhile: read again and retry."
    ),
}
"""Constraints that are violated only when rows are changed without the model's lock."""


class PostgresRecords(PostgresReleases, PostgresAudit, PostgresRollouts, PostgresServing, PostgresWebhooks):
    """`RolloutRecords`, and with them all other records, on one connection."""

    def __init__(self, conn: object, to_event: ToEvent) -> None:
        self._conn = conn
        self._to_event = to_event
        self._events = []


class PostgresStore:
    """`Store[RolloutRecords]` on a pool. `to_event` converts domain events to envelopes."""

    def __init__(self, pool: Pool, to_event: ToEvent) -> None:
        self._pool = pool
        self._to_event = to_event

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresRecords]:
        async with transaction(self._pool, translate=CONSTRAINT_ERRORS) as conn:
            records = PostgresRecords(conn, self._to_event)
            yield records
            await records.send_events()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[PostgresRecords]:
        async with connection(self._pool) as conn:
            yield PostgresRecords(conn, self._to_event)

    async def once(
        self,
        method: str,
        request_id: str,
        body: bytes,
        effect: Callable[[RolloutRecords], Awaitable[bytes]],
    ) -> bytes:
        async with (
            transaction(self._pool, translate=CONSTRAINT_ERRORS) as conn,
            idempotent(conn, method, request_id, body) as once,
        ):
            if once.replay is not None:
                return once.replay
            records = PostgresRecords(conn, self._to_event)
            answer = await effect(records)
            await records.send_events()
            once.store(answer)
        return answer

    async def ready(self) -> bool:
        """Return whether the database answers."""
        async with connection(self._pool) as conn:
            return bool(await conn.fetchval("SELECT true"))

    async def broken_audits(self, sent: Mapping[str, Mapping[int, str]]) -> list[str]:
        """Return one sentence for each fault of an audit; empty when all are intact.

        `sent` are the heads that went out with events: model → sequence number → hash.
        """
        broken: list[str] = []
        async with connection(self._pool) as conn:
            models = await conn.fetch(sql.AUDITED_MODELS)
            for row in models:
                name = row["name"]
                entries = [rows.audit_entry(r) async for r in _all(conn, sql.WHOLE_AUDIT, name, "sequence")]
                evidence = [rows.evidence(r) async for r in _all(conn, sql.WHOLE_EVIDENCE, name, "number")]
                broken += audit_faults(
                    name,
                    entries,
                    AuditHead(row["last_audit"], row["audit_head"]),
                    sent.get(name, {}),
                    {e.number: e.hash for e in evidence},
                    row["last_evidence"],
                )
        lost = sorted(sent.keys() - {row["name"] for row in models})
        return broken + [f"{name}: the model and its audit are missing" for name in lost]


async def _all(conn: Connection, statement: str, model: str, key: str) -> AsyncIterator[rows.Row]:
    """Yield all rows of a model, read in batches by their number `key`."""
    after = 0
    while batch := await conn.fetch(statement, model, after):
        for row in batch:
            yield row
        after = batch[-1][key]


async def registry_identity(pool: Pool) -> str:
    """Return the identity of this database, which its events carry."""
    async with connection(pool) as conn:
        return str(await conn.fetchval("SELECT id FROM registry_identity"))
