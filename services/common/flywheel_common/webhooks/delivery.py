"""Sends stored deliveries by HTTP.

The deliveries of one webhook are sent in order, each again and again until an answer of 2xx, for a day. A
crash after the answer sends a body twice, with the same delivery id.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
from prometheus_client import Counter

from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.pool import Pool, connection
from flywheel_common.telemetry.logs import get_logger
from flywheel_common.webhooks.webhook import DELIVERY_HEADER, SIGNATURE_HEADER, signature

log = get_logger(__name__)

SEND_SECONDS = 10.0
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 600.0
GIVE_UP_SECONDS = 86_400.0
"""Time after its event at which a delivery is given up."""
AT_ONCE = 16
"""Webhooks that are sent to at once."""
KEEP_SECONDS = 7 * 86_400.0
"""How long ended deliveries are kept."""

_DUE = """
SELECT d.serial, d.event_id, d.body, d.attempts, w.project, w.id, w.url, w.secret,
    extract(epoch FROM clock_timestamp() - d.created_at)::float8 AS age
FROM webhook w CROSS JOIN LATERAL (
    SELECT * FROM webhook_delivery WHERE project = w.project AND webhook = w.id AND ended_at IS NULL
    ORDER BY serial LIMIT 1
) d
WHERE d.due_at <= clock_timestamp() ORDER BY d.due_at LIMIT $1
"""
_END = """
UPDATE webhook_delivery SET ended_at = clock_timestamp(), attempts = attempts + 1, error = $2
WHERE serial = $1
"""
_RETRY = """
UPDATE webhook_delivery
SET due_at = clock_timestamp() + $2 * interval '1 second', attempts = attempts + 1, error = $3
WHERE serial = $1
"""
_TRIM = "DELETE FROM webhook_delivery WHERE ended_at < clock_timestamp() - $1 * interval '1 second'"

delivered_total = Counter("flywheel_webhooks_delivered", "Webhook deliveries that were answered with 2xx")
failed_total = Counter("flywheel_webhook_attempts_failed", "Webhook deliveries without an answer of 2xx")
given_up_total = Counter("flywheel_webhooks_given_up", "Webhook deliveries given up after a day")


def retry_seconds(attempts: int) -> float:
    """Return the time until the next attempt after `attempts` that failed."""
    return min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(attempts - 1, 20))


class WebhookDeliveries:
    """Sends what waits. Run it in one replica at a time."""

    def __init__(self, pool: Pool, session: aiohttp.ClientSession, *, poll_seconds: float = 1.0) -> None:
        self._pool = pool
        self._session = session
        self._poll = poll_seconds

    async def run(self) -> None:
        """Send for ever."""
        trimmed = 0.0
        while True:
            try:
                sent = await self.send_due()
                if time.monotonic() - trimmed > 3600:
                    trimmed = time.monotonic()
                    async with connection(self._pool) as conn:
                        await conn.execute(_TRIM, KEEP_SECONDS)
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("webhooks wait for the database", reason=error.reason)
                sent = 0
            if not sent:
                await asyncio.sleep(self._poll)

    async def send_due(self) -> int:
        """Try the oldest waiting delivery of each webhook that is due; returns how many were sent."""
        async with connection(self._pool) as conn:
            due = await conn.fetch(_DUE, AT_ONCE)
        results = await asyncio.gather(*(self._send(row) for row in due))
        return sum(results)

    async def _send(self, row: Any) -> bool:
        error = await self._post(row)
        async with connection(self._pool) as conn:
            if not error:
                await conn.execute(_END, row["serial"], "")
                delivered_total.inc()
                return True
            failed_total.inc()
            if row["age"] > GIVE_UP_SECONDS:
                await conn.execute(_END, row["serial"], error)
                given_up_total.inc()
                log.error("webhook given up", project=row["project"], webhook=row["id"], error=error)
            else:
                await conn.execute(_RETRY, row["serial"], retry_seconds(row["attempts"] + 1), error)
                log.warning("webhook not delivered", project=row["project"], webhook=row["id"], error=error)
        return False

    async def _post(self, row: Any) -> str:
        """Return why the delivery failed, "" if it was accepted. Redirects are not followed."""
        body = bytes(row["body"])
        headers = {"Content-Type": "application/json", DELIVERY_HEADER: row["event_id"]}
        if row["secret"]:
            headers[SIGNATURE_HEADER] = signature(row["secret"], int(time.time()), body)
        timeout = aiohttp.ClientTimeout(total=SEND_SECONDS)
        try:
            async with self._session.post(
                row["url"], data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                return "" if 200 <= answer.status < 300 else f"HTTP {answer.status}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return f"{type(error).__name__}: {error}"[:500]
