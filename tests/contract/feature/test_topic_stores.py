"""Contract tests for the topics of stream sources: in memory and in Kafka."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from flywheel_common.deadline import budget, left_seconds
from flywheel_common.errors import Unavailable
from flywheel_common.kafka.producer import Producer
from flywheel_feature.definitions.model import DataType, Field, Source, StreamSource
from flywheel_feature.fakes.topics import MemoryTopics
from flywheel_feature.store.kafka.source_topics import SourceTopics
from flywheel_local.kafka import Kafka
from tests.support.eventually import eventually

LANDINGS = Source("p", "landings", (Field("at", DataType.TIMESTAMP),), "at", "", StreamSource())
STARTS = replace(LANDINGS, id="starts", kind=StreamSource(partitions=3))


@pytest.fixture(params=["memory", "kafka"])
def topics(request: pytest.FixtureRequest) -> Any:
    return MemoryTopics(2) if request.param == "memory" else request.getfixturevalue("in_kafka")


@pytest.fixture
async def in_kafka(kafka: Kafka, topic_prefix: str) -> AsyncIterator[SourceTopics]:
    async with Producer(kafka.bootstrap, client_id="test") as producer:
        opened = SourceTopics(
            kafka.bootstrap, producer, topic_of=lambda p, s: f"{topic_prefix}{p}.{s}", partitions=2
        )
        yield opened
        await opened.close()
        await producer.close()


async def test_topic_is_created_once_with_the_partitions_of_its_source(topics: Any) -> None:
    assert {} == await topics.end_offsets("p", "landings")
    assert {2} == set(await asyncio.gather(*(topics.ensure(LANDINGS) for _ in range(4))))
    assert 3 == await topics.ensure(STARTS)
    assert {0: 0, 1: 0} == await topics.end_offsets("p", "landings")
    assert {0: 0, 1: 0, 2: 0} == await topics.end_offsets("p", "starts")


async def test_events_get_the_offsets_of_their_partition_in_order(topics: Any) -> None:
    await topics.ensure(LANDINGS)
    assert [(0, 0), (1, 0), (0, 1)] == await topics.send(LANDINGS, [(0, b"a"), (1, b"b"), (0, b"c")])
    assert [] == await topics.send(LANDINGS, [])
    assert [(1, 1)] == await topics.send(LANDINGS, [(1, b"d")])
    assert {0: 2, 1: 2} == await topics.end_offsets("p", "landings")
    assert {0: 2, 1: 2} == await topics.recent_end_offsets("p", "landings")
    assert {} == await topics.end_offsets("p", "starts")


async def test_oldest_record_after_positions_tells_since_when_events_wait(topics: Any) -> None:
    await topics.ensure(LANDINGS)
    assert 0 == await topics.stored_since("p", "landings", {})
    before = time.time_ns() // 1_000_000 * 1000
    await topics.send(LANDINGS, [(0, b"a"), (1, b"b" * 100_000)])
    between = time.time_ns() // 1000
    await asyncio.sleep(1.2)
    await topics.send(LANDINGS, [(0, b"c"), (1, b"d")])
    for positions in ({0: 0}, {1: 0}, {0: 1, 1: 0}):
        assert before <= await topics.stored_since("p", "landings", positions) <= between
        await asyncio.sleep(1.2)  # an answer may be a second old
    assert between + 1_000_000 < await topics.stored_since("p", "landings", {0: 1, 1: 1})


async def test_hung_broker_is_unavailable_before_the_deadline(in_kafka: SourceTopics, kafka: Kafka) -> None:
    await in_kafka.ensure(LANDINGS)
    assert {0: 0, 1: 0} == await in_kafka.end_offsets("p", "landings")
    assert kafka.process is not None
    kafka.process.signal(signal.SIGSTOP)
    try:
        with budget(1.0):
            calls = (in_kafka.end_offsets("p", "landings") for _ in range(3))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            left = left_seconds()
        assert {"KAFKA_UNAVAILABLE"} == {a.reason for a in answers if isinstance(a, Unavailable)}
        assert left is not None
        assert left > 0
    finally:
        kafka.process.signal(signal.SIGCONT)

    async def recovered() -> bool:
        with suppress(Unavailable):
            return {0: 0, 1: 0} == await in_kafka.end_offsets("p", "landings")
        return False

    await eventually(recovered, within=30)
