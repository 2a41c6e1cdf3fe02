"""Events and topics for tests on a real Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer

from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.envelope import build_event, parse_event
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.topics import TopicSpec, partition_for
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.types.v1.value_pb2 import Value

MOMENT = datetime(2013, 1, 1, tzinfo=UTC)


def event(event_id: str, key: str = "k") -> Event:
    """An event whose payload is its id."""
    return build_event(
        Value(string_value=event_id), source="test", key=key, event_time=MOMENT, event_id=event_id
    )


def event_id(record: Any) -> str:
    """The event id of an aiokafka record."""
    return parse_event(record.value).id


async def create_topic(kafka: Any, name: str, partitions: int = 4) -> str:
    """Creates a topic and returns its name."""
    await ensure_topics(kafka.bootstrap, [TopicSpec(name, partitions)])
    return name


async def produce(producer: Producer, topic: str, ids: Sequence[str], partitions: int = 4) -> None:
    """Sends an event per id, partitioned by id."""
    done, failure = await producer.send_in_order(
        [(topic, event(i).SerializeToString(), i, partition_for(i, partitions)) for i in ids]
    )
    assert (done, failure) == (len(ids), None)


async def read_records(bootstrap: str, topic: str, expected: int) -> list[Any]:
    """Reads a topic from the beginning until it has `expected` records."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None
    )
    await consumer.start()
    try:
        found: list[Any] = []
        async with asyncio.timeout(20):
            while len(found) < expected:
                for batch in (await consumer.getmany(timeout_ms=500)).values():
                    found += batch
        return found
    finally:
        await consumer.stop()
