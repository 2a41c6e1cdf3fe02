"""Webhooks and their deliveries in PostgreSQL."""

from __future__ import annotations

from flywheel_common.postgres.pool import Connection
from flywheel_common.webhooks import rows
from flywheel_common.webhooks.webhook import Webhook as SentTo
from flywheel_registry.store.postgres import webhook_statements as sql
from flywheel_registry.webhooks.catalog import FORMAT
from flywheel_registry.webhooks.webhook import Delivery, Webhook, WebhookName


class PostgresWebhooks:
    """Part of `PostgresRecords`: webhooks. `_conn` is the transaction's connection."""

    _conn: Connection

    async def add_webhook(self, webhook: Webhook) -> bool:
        w = webhook
        if await self.webhook(w.name) is not None:
            return False
        await rows.put_webhook(self._conn, SentTo(w.project, w.id, w.url, FORMAT, w.secret))
        await self._conn.execute(
            sql.SUBSCRIBE, w.project, w.id, w.model, list(w.events), w.created_at, w.created_by
        )
        return True

    async def webhook(self, name: str) -> Webhook | None:
        parsed = WebhookName.parse(name)
        row = await self._conn.fetchrow(sql.SELECT_WEBHOOK, parsed.project, parsed.webhook)
        return None if row is None else Webhook(**{**row, "events": tuple(row["events"])})

    async def webhooks(self, project: str, after: str, limit: int) -> list[Webhook]:
        found = await self._conn.fetch(sql.LIST_WEBHOOKS, project, after, limit)
        return [Webhook(**{**row, "events": tuple(row["events"])}) for row in found]

    async def delete_webhook(self, name: str) -> None:
        parsed = WebhookName.parse(name)
        await rows.delete_webhook(self._conn, parsed.project, parsed.webhook)

    async def deliveries(self, webhook: str, before: int, limit: int) -> list[Delivery]:
        parsed = WebhookName.parse(webhook)
        found = await self._conn.fetch(sql.LIST_DELIVERIES, parsed.project, parsed.webhook, before, limit)
        return [Delivery(**row) for row in found]
