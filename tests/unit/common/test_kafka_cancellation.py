"""A cancellation that comes while aiokafka closes reaches the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient

from flywheel_common.kafka.client import close_quietly, partition_counts, stop_consumer, stop_producer

NOWHERE = "127.0.0.1:1"


class SlowTask:
    """A client whose own task takes a moment to end, as when it reads metadata."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()

    def begin(self, client: AIOKafkaClient) -> None:
        client._sync_task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            self.closing.set()
            await asyncio.sleep(0.2)


async def of_admin(slow: SlowTask, monkeypatch: pytest.MonkeyPatch) -> Awaitable[Any]:
    async def start(self: AIOKafkaAdminClient) -> None:
        slow.begin(self._client)

    async def nothing(self: AIOKafkaAdminClient) -> list[str]:
        return []

    monkeypatch.setattr(AIOKafkaAdminClient, "start", start)
    monkeypatch.setattr(AIOKafkaAdminClient, "list_topics", nothing)
    return partition_counts(NOWHERE, [])


async def of_consumer(slow: SlowTask, _: pytest.MonkeyPatch) -> Awaitable[Any]:
    consumer = AIOKafkaConsumer(bootstrap_servers=NOWHERE)
    slow.begin(consumer._client)
    return stop_consumer(consumer, seconds=5)


async def of_producer(slow: SlowTask, _: pytest.MonkeyPatch) -> Awaitable[Any]:
    producer = AIOKafkaProducer(bootstrap_servers=NOWHERE)
    slow.begin(producer.client)
    return stop_producer(producer, flush_seconds=5)


@pytest.mark.parametrize("closes", [of_admin, of_consumer, of_producer])
async def test_a_cancellation_during_a_close_is_not_lost(
    closes: Callable[[SlowTask, pytest.MonkeyPatch], Awaitable[Awaitable[Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = SlowTask()
    work = await closes(slow, monkeypatch)

    async def waits() -> None:
        await work

    task = asyncio.create_task(waits())
    async with asyncio.timeout(5):
        await slow.closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_close_is_quiet_and_bounded() -> None:
    async def fails() -> None:
        raise OSError("the broker is gone")

    await close_quietly(fails())
    async with asyncio.timeout(5):
        await close_quietly(asyncio.sleep(60), seconds=0.01)
