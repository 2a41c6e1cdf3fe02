"""Shared by all uses of Kafka: error mapping, topic creation, bounded shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from flywheel_common.kafka.errors import KafkaUnavailable, TooFewPartitions
from flywheel_common.kafka.topics import TopicSpec
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)
_EXISTS = 36


@contextmanager
def kafka_errors() -> Iterator[None]:
    """Turns aiokafka's errors into KafkaUnavailable; a send that timed out may have arrived."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise unavailable(error) from error


def unavailable(error: BaseException) -> KafkaUnavailable:
    """The domain error for an error of aiokafka."""
    return KafkaUnavailable("Kafka does not answer now: try again.", cause=type(error).__name__)


async def close_quietly(closing: Awaitable[object], *, seconds: float = 5.0) -> None:
    """Wait at most `seconds` for a `close` or `stop` of aiokafka, and ignore its errors.

    The call runs in a task of its own. aiokafka suppresses a cancellation that arrives while it closes: a
    caller that awaited the call directly would not stop.
    """
    task = asyncio.ensure_future(closing)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()


async def stop_producer(inner: AIOKafkaProducer, *, flush_seconds: float) -> None:
    """Sends buffered records for at most `flush_seconds`, then drops them. Never raises.

    Always closes the connections; aiokafka's own `stop` does not if it is interrupted while it flushes.
    """
    stopping = asyncio.ensure_future(inner.stop())
    try:
        await asyncio.wait({stopping}, timeout=flush_seconds)
    finally:
        if not stopping.done():
            await _abandon(inner, stopping)
        elif not stopping.cancelled() and stopping.exception() is not None:
            await close_quietly(inner.client.close())


async def _abandon(inner: AIOKafkaProducer, stopping: asyncio.Future[None]) -> None:
    """Stops the parts in the order in which they wait for each other: sender, connections, buffer."""
    sending = inner._sender.sender_task if inner._sender is not None else None  # noqa: SLF001 - no public way
    stopping.cancel()
    if sending is not None:
        sending.cancel()
    await close_quietly(inner.client.close())
    await asyncio.wait({task for task in (stopping, sending) if task is not None}, timeout=1.0)
    error = KafkaError("the producer was stopped")
    inner._message_accumulator.fail_all(error)  # noqa: SLF001 - no public way
    for task in (stopping, sending):
        if task is not None and task.done() and not task.cancelled():
            task.exception()


async def partitions_of(consumer: AIOKafkaConsumer, topics: Iterable[str]) -> list[TopicPartition]:
    """The partitions of the topics that the broker lists now. The metadata that a started consumer holds is
    empty until its first refresh, and a partition that is missing there would count as read."""
    cluster = await consumer._client.fetch_all_metadata()  # noqa: SLF001 - there is no public way
    return [
        TopicPartition(topic, number)
        for topic in topics
        for number in sorted(cluster.partitions_for_topic(topic) or ())
    ]


async def stop_consumer(inner: AIOKafkaConsumer, *, seconds: float) -> None:
    """Leaves the group within `seconds` and always closes the connections. Never raises."""
    stopping = asyncio.ensure_future(inner.stop())
    try:
        await asyncio.wait({stopping}, timeout=seconds)
    finally:
        failed = stopping.done() and not stopping.cancelled() and stopping.exception() is not None
        if not stopping.done() or failed:
            stopping.cancel()
            await close_quietly(inner._client.close())  # noqa: SLF001 - no public way


async def ensure_topics(bootstrap: str, specs: Iterable[TopicSpec], *, timeout_seconds: float = 30.0) -> None:
    """Creates missing topics and leaves existing ones unchanged. Raises KafkaUnavailable when the broker does
    not answer in time, TooFewPartitions when an existing topic has fewer partitions."""
    wanted = tuple(specs)
    loop = asyncio.get_running_loop()
    give_up = loop.time() + timeout_seconds
    while True:
        try:
            await _create(bootstrap, wanted)
            return
        except (KafkaError, OSError, TimeoutError) as error:
            if loop.time() > give_up:
                raise KafkaUnavailable(
                    f"Kafka at {bootstrap} did not answer within {timeout_seconds:g} s: "
                    "start it or correct kafka_bootstrap.",
                ) from error
            log.warning("waiting for kafka", bootstrap=bootstrap, error=type(error).__name__)
            await asyncio.sleep(0.5)


async def _create(bootstrap: str, specs: Sequence[TopicSpec]) -> None:
    counts = await partition_counts(bootstrap, specs)
    for spec in specs:
        if 0 < counts[spec.name] < spec.partitions:
            raise TooFewPartitions(
                f"Topic {spec.name} has {counts[spec.name]} partitions where {spec.partitions} are needed: "
                "create it again, or set kafka_partitions to the number that it has.",
            )


async def partition_counts(bootstrap: str, specs: Sequence[TopicSpec]) -> dict[str, int]:
    """Creates missing topics; returns how many partitions each topic has. Raises errors of aiokafka."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=10_000)
    try:
        await admin.start()
        existing = set(await admin.list_topics())
        counts = {spec.name: spec.partitions for spec in specs}
        missing = [spec for spec in specs if spec.name not in existing]
        if missing:
            answer = await admin.create_topics(
                [NewTopic(s.name, s.partitions, s.replication, topic_configs=s.configs) for s in missing]
            )
            for name, code, *_ in answer.topic_errors:
                if code == _EXISTS:
                    existing.add(name)
                elif code:
                    raise for_code(code)(f"topic {name}")
        known = sorted(counts.keys() & existing)
        for topic in await admin.describe_topics(known) if known else ():
            counts[topic["topic"]] = len(topic["partitions"])
        return counts
    finally:
        await close_quietly(admin.close())
