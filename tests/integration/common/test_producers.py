"""Topics and producers on the real Kafka."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flywheel_common import errors
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.outbox import enqueue
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.topics import TopicSpec
from flywheel_common.postgres.pool import Pool, transaction
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.builders.events import MOMENT, create_topic, event, event_id, read_records
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(120)


async def test_topics_are_created_once_and_too_few_partitions_refused(kafka: Any, topic_prefix: str) -> None:
    spec = TopicSpec(topic_prefix + "a", 2)
    await ensure_topics(kafka.bootstrap, [spec])
    await ensure_topics(kafka.bootstrap, [spec, TopicSpec(topic_prefix + "b", 1)])
    with pytest.raises(errors.FailedPrecondition) as caught:
        await ensure_topics(kafka.bootstrap, [TopicSpec(spec.name, 4)])
    assert caught.value.reason == "TOO_FEW_PARTITIONS"


async def test_a_broker_that_is_down_is_unavailable_within_the_timeout() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(errors.Unavailable):
        await ensure_topics(address, [TopicSpec("x")], timeout_seconds=0.5)
    async with Producer(address, client_id="t", timeout_seconds=1) as producer:
        with pytest.raises(errors.Unavailable) as caught:
            await producer.send("x", event("e"))
    assert caught.value.reason == "KAFKA_UNAVAILABLE"


async def test_a_record_that_is_too_large_is_refused(kafka: Any, pool: Pool, topic_prefix: str) -> None:
    topic = await create_topic(kafka, topic_prefix + "in", 1)
    huge = build_event(Value(bytes_value=b"x" * 9_000_000), source="test", key="k", event_time=MOMENT)
    large = build_event(
        Value(bytes_value=b"x" * 3_000_000), source="test", key="k", event_time=MOMENT, event_id="large"
    )
    async with Producer(kafka.bootstrap, client_id="large") as producer:
        with pytest.raises(errors.InvalidArgument) as caught:
            await producer.send(topic, huge)
        assert caught.value.reason == "EVENT_TOO_LARGE"
        records = [(topic, e.SerializeToString(), e.key, 0) for e in (event("a"), large, huge, event("b"))]
        done, failure = await producer.send_in_order(records)
        assert (2, "EVENT_TOO_LARGE") == (done, failure.reason if failure else "")
        assert (1, None) == await producer.send_in_order(records[3:])
    assert [event_id(r) for r in await read_records(kafka.bootstrap, topic, 3)] == ["a", "large", "b"]
    with pytest.raises(errors.InvalidArgument):
        async with transaction(pool) as conn:
            await enqueue(conn, topic, huge)


async def test_a_producer_works_after_many_concurrent_failures(kafka: Any, topic_prefix: str) -> None:
    topic = await create_topic(kafka, topic_prefix + "in", 1)
    async with Producer(kafka.bootstrap, client_id="many", timeout_seconds=3) as producer:
        await producer.send(topic, event("first"), partition=0)
        missing = [producer.send(topic_prefix + "no-such-topic", event("x"), partition=0) for _ in range(20)]
        outcomes = await asyncio.gather(*missing, return_exceptions=True)
        assert all(isinstance(o, errors.Unavailable) for o in outcomes)
        await asyncio.gather(*(producer.send(topic, event(f"e{n}"), partition=0) for n in range(20)))
