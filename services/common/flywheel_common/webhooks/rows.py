"""Webhooks and their deliveries in PostgreSQL."""

from __future__ import annotations

from flywheel_common.postgres.pool import Connection
from flywheel_common.webhooks.webhook import Webhook

_PUT = """
INSERT INTO webhook (project, id, url, format, secret) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (project, id) DO UPDATE
    SET url = excluded.url, format = excluded.format, secret = excluded.secret
"""
_ALL = "SELECT project, id, url, format, secret FROM webhook WHERE project = $1 ORDER BY id"
_DELETE = "DELETE FROM webhook WHERE project = $1 AND id = $2 RETURNING true"
_ENQUEUE = """
INSERT INTO webhook_delivery (project, webhook, event_id, body) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
"""


async def put_webhook(conn: Connection, webhook: Webhook) -> None:
    """Store the webhook; it replaces one of the same id, whose waiting deliveries go to the new address."""
    await conn.execute(_PUT, webhook.project, webhook.id, webhook.url, webhook.format, webhook.secret)


async def webhooks(conn: Connection, project: str) -> list[Webhook]:
    """Return the webhooks of a project by id."""
    return [Webhook(*row) for row in await conn.fetch(_ALL, project)]


async def delete_webhook(conn: Connection, project: str, webhook: str) -> bool:
    """Delete a webhook with what waits for it; returns whether it existed."""
    return bool(await conn.fetchval(_DELETE, project, webhook))


async def enqueue_delivery(conn: Connection, webhook: Webhook, event_id: str, body: bytes) -> None:
    """Store a body to send in the transaction of the caller, once per event id and webhook."""
    await conn.execute(_ENQUEUE, webhook.project, webhook.id, event_id, body)
