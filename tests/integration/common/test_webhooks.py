"""Webhooks on a real PostgreSQL and a real HTTP server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator

import aiohttp
import pytest

from flywheel_common.postgres.pool import Pool, connection, transaction
from flywheel_common.webhooks import rows
from flywheel_common.webhooks.delivery import WebhookDeliveries
from flywheel_common.webhooks.webhook import DELIVERY_HEADER, SIGNATURE_HEADER, Webhook
from tests.support.eventually import eventually
from tests.support.servers.webhook_receiver import WebhookReceiver, webhook_receiver

SECRET = "a secret of the receiver"


@pytest.fixture
async def receiver() -> AsyncIterator[WebhookReceiver]:
    async with webhook_receiver() as found:
        yield found


@pytest.fixture
async def deliveries(pool: Pool) -> AsyncIterator[WebhookDeliveries]:
    async with aiohttp.ClientSession() as session:
        yield WebhookDeliveries(pool, session, poll_seconds=0.05)


async def put(pool: Pool, url: str, name: str = "pager", secret: str = SECRET) -> Webhook:
    webhook = Webhook("p", name, url, "FLYWHEEL", secret)
    async with transaction(pool) as conn:
        await rows.put_webhook(conn, webhook)
    return webhook


async def enqueue(pool: Pool, webhook: Webhook, *events: str) -> None:
    async with transaction(pool) as conn:
        for event in events:
            await rows.enqueue_delivery(conn, webhook, event, f'{{"id":"{event}"}}'.encode())


async def make_due(pool: Pool) -> None:
    async with connection(pool) as conn:
        await conn.execute("UPDATE webhook_delivery SET due_at = now() WHERE ended_at IS NULL")


async def waiting(pool: Pool) -> int:
    async with connection(pool) as conn:
        return int(await conn.fetchval("SELECT count(*) FROM webhook_delivery WHERE ended_at IS NULL"))


async def test_deliveries_are_signed_in_order_and_once_per_event(
    pool: Pool, receiver: WebhookReceiver, deliveries: WebhookDeliveries
) -> None:
    webhook = await put(pool, receiver.url)
    await enqueue(pool, webhook, "a", "b", "a", "c")
    while await deliveries.send_due():
        pass
    assert [b'{"id":"a"}', b'{"id":"b"}', b'{"id":"c"}'] == receiver.bodies
    assert ["a", "b", "c"] == [headers[DELIVERY_HEADER] for headers in receiver.headers]
    for body, headers in zip(receiver.bodies, receiver.headers, strict=True):
        when, sent = (part.partition("=")[2] for part in headers[SIGNATURE_HEADER].split(","))
        expected = hmac.new(SECRET.encode(), f"{when}.".encode() + body, hashlib.sha256).hexdigest()
        assert expected == sent
    assert 0 == await waiting(pool)


@pytest.mark.parametrize("status", [302, 400, 404, 500, 503])
async def test_any_other_answer_than_success_is_retried_before_later_events(
    pool: Pool, receiver: WebhookReceiver, deliveries: WebhookDeliveries, status: int
) -> None:
    receiver.statuses = [status]
    webhook = await put(pool, receiver.url)
    await enqueue(pool, webhook, "a", "b")
    assert 0 == await deliveries.send_due()
    assert 0 == await deliveries.send_due()
    assert 1 == len(receiver.bodies)
    await make_due(pool)
    assert 1 == await deliveries.send_due()
    assert 1 == await deliveries.send_due()
    assert ["a", "a", "b"] == [headers[DELIVERY_HEADER] for headers in receiver.headers]


async def test_one_webhook_that_cannot_be_reached_delays_no_other(
    pool: Pool, receiver: WebhookReceiver, deliveries: WebhookDeliveries
) -> None:
    lost = await put(pool, "http://127.0.0.1:1/hook", "lost")
    good = await put(pool, receiver.url, "good", "")
    await enqueue(pool, lost, "a")
    await enqueue(pool, good, "a", "b")
    task = asyncio.create_task(deliveries.run())

    async def arrived() -> bool:
        return len(receiver.bodies) == 2

    await eventually(arrived, within=10)
    task.cancel()
    assert SIGNATURE_HEADER not in receiver.headers[0]
    assert 1 == await waiting(pool)
    async with connection(pool) as conn:
        error = await conn.fetchval("SELECT error FROM webhook_delivery WHERE webhook = 'lost'")
    assert "ClientConnectorError" in error


async def test_a_delivery_is_given_up_after_a_day_and_goes_with_its_webhook(
    pool: Pool, receiver: WebhookReceiver, deliveries: WebhookDeliveries
) -> None:
    webhook = await put(pool, receiver.url)
    await enqueue(pool, webhook, "old", "new")
    async with connection(pool) as conn:
        await conn.execute(
            "UPDATE webhook_delivery SET created_at = now() - interval '25 hours' WHERE event_id = 'old'"
        )
    receiver.statuses = [500]
    await deliveries.send_due()
    await deliveries.send_due()
    assert ["old", "new"] == [headers[DELIVERY_HEADER] for headers in receiver.headers]
    await enqueue(pool, webhook, "last")
    async with transaction(pool) as conn:
        assert await rows.delete_webhook(conn, "p", "pager")
        assert not await rows.delete_webhook(conn, "p", "pager")
    assert 0 == await waiting(pool)
