"""The transactional outbox on the real Kafka and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from flywheel_common import errors
from flywheel_common.clock import SystemClock
from flywheel_common.kafka.outbox import Relay, enqueue
from flywheel_common.kafka.producer import Producer
from flywheel_common.postgres.pool import Pool, connection, transaction
from flywheel_common.process.supervision import BackgroundTask, RestartRule, Supervisor
from flywheel_common.telemetry.metrics import background_failures
from tests.support.builders.events import create_topic, event, event_id, read_records
from tests.support.eventually import eventually
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(120)
FAILURES = background_failures(CollectorRegistry())


async def test_the_outbox_sends_committed_events_in_order_per_key(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str
) -> None:
    topic = await create_topic(kafka, topic_prefix + "out", 2)

    async def write(key: str, n: int) -> None:
        async with transaction(pool) as conn:
            # the order of a key is the order in which its transactions commit
            at = await conn.fetchval("INSERT INTO effect (id) VALUES ($1) RETURNING at", key)
            await enqueue(conn, topic, event(f"{key}-{n}-{at}", key))
            if n % 5 == 4:
                raise RuntimeError("rolled back")

    relays = [Relay(pool, producer, poll_seconds=0.2, batch=7, lease_ttl_seconds=2) for _ in range(2)]
    tasks = [asyncio.create_task(relay.run()) for relay in relays]
    for n in range(20):
        await asyncio.gather(*(write(key, n) for key in "abc"), return_exceptions=True)
    records = await read_records(kafka.bootstrap, topic, 48)
    await eventually(lambda: _outbox_empty(pool), within=20)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for key in "abc":
        numbers = [
            int(r.key == key.encode() and event_id(r).split("-")[1]) for r in records if r.key == key.encode()
        ]
        assert numbers == [n for n in range(20) if n % 5 != 4]


async def test_the_outbox_sends_in_order_after_an_unexpected_error(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str
) -> None:
    class BrokenOnce(Producer):
        """Sends two events of the first batch, and raises."""

        broken = True

        async def send_in_order(self, records: Sequence[Any]) -> Any:
            if self.broken:
                self.broken = False
                await super().send_in_order(records[:2])
                raise RuntimeError("broken")
            return await super().send_in_order(records)

    topic = await create_topic(kafka, topic_prefix + "out", 1)
    async with transaction(pool) as conn:
        for n in range(6):
            await enqueue(conn, topic, event(f"e-{n}", "k"))
    async with BrokenOnce(kafka.bootstrap, client_id="broken-once") as broken:
        supervisor = Supervisor(RestartRule(first_delay_seconds=0.05), SystemClock(), FAILURES)
        relay = Relay(pool, broken, poll_seconds=0.2, lease_ttl_seconds=2)
        task = asyncio.create_task(supervisor.keep_running(BackgroundTask("relay", relay.run)))
        await eventually(lambda: _outbox_empty(pool), within=20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    sent = [event_id(record) for record in await read_records(kafka.bootstrap, topic, 8)]
    # The two that were sent and not marked are sent again; consumers know them by their ids.
    assert sent == ["e-0", "e-1", *(f"e-{n}" for n in range(6))]


async def _outbox_empty(pool: Pool) -> bool:
    async with connection(pool) as conn:
        return bool(await conn.fetchval("SELECT count(*) = 0 FROM outbox WHERE sent_at IS NULL"))


async def test_the_outbox_sends_in_order_after_a_kafka_outage(
    kafka: Any, pool: Pool, topic_prefix: str
) -> None:
    topic = await create_topic(kafka, topic_prefix + "out", 1)
    for n in range(30):
        async with transaction(pool) as conn:
            await enqueue(conn, topic, event(f"e{n}", "k"))
    async with Producer(f"127.0.0.1:{free_port()}", client_id="nowhere", timeout_seconds=1) as nowhere:
        with pytest.raises(errors.Unavailable):
            await Relay(pool, nowhere).send_batch()
    async with Producer(kafka.bootstrap, client_id="relay") as producer:
        assert await Relay(pool, producer).send_batch() == 30
    assert [event_id(r) for r in await read_records(kafka.bootstrap, topic, 30)] == [
        f"e{n}" for n in range(30)
    ]
