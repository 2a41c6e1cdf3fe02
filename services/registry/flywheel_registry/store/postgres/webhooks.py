"""Webhooks and their deliveries in PostgreSQL."""

from __future__ import annotations

from flywheel_common.postgres.pool import Connection, Pool, connection
from flywheel_registry.store.postgres import webhook_statements as sql
from flywheel_registry.webhooks.ports import DueDelivery
from flywheel_registry.webhooks.webhook import Delivery, Webhook


class PostgresWebhooks:
    """Part of `PostgresRecords`: webhooks. `_conn` is the transaction's connection."""

    _conn: Connection

    async def add_webhook(self, webhook: Webhook) -> bool:
        w = webhook
        added = await self._conn.fetchval(
            sql.INSERT_WEBHOOK,
            w.name,
            w.project,
            w.url,
            w.model,
            list(w.events),
            w.secret,
            w.created_at,
            w.created_by,
        )
        return added is not None

    async def webhook(self, name: str) -> Webhook | None:
        row = await self._conn.fetchrow(sql.SELECT_WEBHOOK, name)
        return None if row is None else Webhook(**{**row, "events": tuple(row["events"])})

    async def webhooks(self, project: str, after: str, limit: int) -> list[Webhook]:
        found = await self._conn.fetch(sql.LIST_WEBHOOKS, project, after, limit)
        return [Webhook(**{**row, "events": tuple(row["events"])}) for row in found]

    async def delete_webhook(self, name: str) -> None:
        await self._conn.execute(sql.DELETE_WEBHOOK, name)

    async def deliveries(self, webhook: str, before: int, limit: int) -> list[Delivery]:
        return [
            Delivery(**row) for row in await self._conn.fetch(sql.LIST_DELIVERIES, webhook, before, limit)
        ]


class PostgresWebhookQueue:
    """`WebhookQueue` on a pool; the database's clock decides what is due."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def claim(self, limit: int, lease_seconds: float) -> list[DueDelivery]:
        async with connection(self._pool) as conn:
            return [DueDelivery(**row) for row in await conn.fetch(sql.CLAIM, limit, lease_seconds)]

    async def delivered(self, delivery: int, result: str) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(sql.DELIVERED, delivery, result)

    async def failed(self, delivery: int, result: str, retry_seconds: float | None) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(sql.FAILED, delivery, result, retry_seconds)

    async def delete_old(self) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(sql.DELETE_OLD)
