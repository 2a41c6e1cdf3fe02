"""The transactional outbox: an event is sent if and only if the transaction that caused it was committed.

`enqueue` holds a lock per (topic, key) until the transaction ends, so that the ids of a key rise in commit
order. One relay at a time, under a lease, sends events at least once and in order per key; consumers dedupe
by event id.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from prometheus_client import Counter, Gauge

from flywheel_common.errors import FlywheelError
from flywheel_common.kafka.errors import EventTooLarge
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.topics import MAX_RECORD_BYTES
from flywheel_common.postgres.lease import Lease
from flywheel_common.postgres.listener import Listener
from flywheel_common.postgres.pool import Connection, Pool, connection
from flywheel_common.telemetry.logs import get_logger
from flywheel_protos.events.v1.event_pb2 import Event

log = get_logger(__name__)

CHANNEL = "flywheel_outbox"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended($1, 7))"
_INSERT = """
WITH added AS (
    INSERT INTO outbox (topic, key, event_id, partition, value) VALUES ($1, $2, $3, $4, $5) RETURNING id)
SELECT pg_notify('flywheel_outbox', '') FROM added
"""
_UNSENT = "SELECT id, topic, key, partition, value FROM outbox WHERE sent_at IS NULL ORDER BY id LIMIT $1"
_SENT = "UPDATE outbox SET sent_at = clock_timestamp() WHERE id = ANY($1::bigint[])"
_TRIM = "DELETE FROM outbox WHERE sent_at < now() - $1 * interval '1 second'"
_WAITING = "SELECT count(*) FROM outbox WHERE sent_at IS NULL"

sent_total = Counter("flywheel_outbox_sent", "Outbox events acknowledged by Kafka")
waiting = Gauge("flywheel_outbox_waiting", "Outbox events not yet sent")


async def enqueue(conn: Connection, topic: str, event: Event, *, partition: int | None = None) -> None:
    """Stores the event in the transaction of the caller. The record key is `event.key`. Raises
    EventTooLarge."""
    value = event.SerializeToString()
    if len(value) > MAX_RECORD_BYTES - 1024:
        raise EventTooLarge(f"An event of {len(value)} bytes is too large.")
    await conn.execute(_LOCK, f"{topic}\0{event.key}".replace("\0", "/"))
    await conn.execute(_INSERT, topic, event.key, event.id, partition, value)


class Relay:
    """Sends the outbox of a database to Kafka. Run it as a background task in every replica."""

    def __init__(
        self,
        pool: Pool,
        producer: Producer,
        *,
        lease_name: str = "outbox-relay",
        batch: int = 500,
        poll_seconds: float = 1.0,
        keep_sent_seconds: float = 3600.0,
        lease_ttl_seconds: float = 10.0,
    ) -> None:
        self._pool = pool
        self._producer = producer
        self._lease = Lease(pool, lease_name, ttl_seconds=lease_ttl_seconds)
        self._batch = batch
        self._poll = poll_seconds
        self._keep = keep_sent_seconds

    async def run(self) -> None:
        """Sends for ever while this replica holds the lease."""
        await self._lease.run(lambda _: self._relay())

    async def _relay(self) -> None:
        woken = asyncio.Event()
        listener = Listener(self._pool, CHANNEL, lambda _: woken.set())
        trimmed = 0.0
        loop = asyncio.get_running_loop()
        try:
            while True:
                woken.clear()
                try:
                    if await listener.ensure():
                        woken.set()
                    sent = await self.send_batch()
                    if loop.time() - trimmed > 60:
                        trimmed = loop.time()
                        await self._trim()
                except FlywheelError as error:
                    if not error.retryable:
                        raise
                    log.warning("outbox will be retried", reason=error.reason)
                    await asyncio.sleep(0.5)
                    continue
                if sent < self._batch:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._poll):
                            await woken.wait()
        finally:
            await listener.close()

    async def send_batch(self) -> int:
        """Sends at most one batch and returns the number of events. Marks the events that were acknowledged
        before the first failure, so that a retry continues in order. Raises KafkaUnavailable."""
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_UNSENT, self._batch)
        if not rows:
            waiting.set(0)
            return 0
        done, failure = await self._producer.send_in_order(
            [(row["topic"], row["value"], row["key"], row["partition"]) for row in rows]
        )
        if done:
            async with connection(self._pool) as conn:
                await conn.execute(_SENT, [row["id"] for row in rows[:done]])
            sent_total.inc(done)
        if failure is not None:
            raise failure
        return len(rows)

    async def _trim(self) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_TRIM, self._keep)
            waiting.set(await conn.fetchval(_WAITING))
