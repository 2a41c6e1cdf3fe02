"""Sends deliveries until they are accepted, with growing waits between the tries."""

from __future__ import annotations

import asyncio

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_registry.webhooks.ports import DueDelivery, HttpPost, WebhookQueue
from flywheel_registry.webhooks.webhook import signature

log = get_logger(__name__)

AT_ONCE = 20
LEASE_SECONDS = 60.0
"""Longer than one try takes."""
POLL_SECONDS = 1.0
FIRST_WAIT_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 4 * 3600.0
MAX_TRIES = 30
"""With these waits about three days."""


class WebhookSender:
    """Sends what is due; run it in every replica."""

    def __init__(self, queue: WebhookQueue, http: HttpPost, clock: Clock) -> None:
        self._queue = queue
        self._http = http
        self._clock = clock

    async def run(self) -> None:
        """Send deliveries until cancelled."""
        while True:
            try:
                sent = await self.send_due()
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("webhooks wait", reason=error.reason)
                sent = 0
            if not sent:
                await asyncio.sleep(POLL_SECONDS)

    async def send_due(self) -> int:
        """Try the deliveries that are due, at most AT_ONCE; return how many."""
        due = await self._queue.claim(AT_ONCE, LEASE_SECONDS)
        async with asyncio.TaskGroup() as group:
            for delivery in due:
                group.create_task(self._send(delivery))
        return len(due)

    async def _send(self, delivery: DueDelivery) -> None:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "flywheel-registry",
            "Flywheel-Delivery": str(delivery.id),
            "Flywheel-Signature": signature(
                delivery.secret, delivery.body, int(self._clock.now().timestamp())
            ),
        }
        result = await self._http.post(delivery.url, delivery.body.encode(), headers)
        if isinstance(result, int) and 200 <= result < 300:
            await self._queue.delivered(delivery.id, f"HTTP {result}")
            return
        text = f"HTTP {result}" if isinstance(result, int) else result
        await self._queue.failed(delivery.id, text, retry_wait(delivery.try_count))


def retry_wait(tries: int) -> float | None:
    """Return the seconds until the next try; None after the last one."""
    if tries >= MAX_TRIES:
        return None
    return min(FIRST_WAIT_SECONDS * 2.0 ** (tries - 1), LONGEST_WAIT_SECONDS)
