"""What waits unread, from the first question on: the watch closes windows by it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiokafka import TopicPartition

from flywheel_common.consumer_offsets import claim_partitions, move_position
from flywheel_common.errors import Unavailable
from flywheel_common.kafka import ensure_topics
from flywheel_common.migrate import migrate
from flywheel_common.postgres import Pool, create_pool, transaction
from flywheel_common.producer import Producer
from flywheel_common.topics import TopicSpec, dead_letter
from flywheel_local.kafka import Kafka
from flywheel_monitor.server import MIGRATIONS
from flywheel_monitor.store.lag import LagProbe

GROUP = "monitor"


@dataclass
class Broker:
    """Two topics of two partitions under names of their own, and a group that reads them."""

    bootstrap: str
    pool: Pool
    producer: Producer
    answers: str
    outcomes: str
    group: str

    async def write(self, topic: str, partition: int, count: int = 1) -> None:
        for _ in range(count):
            await self.producer.send(topic, b"record", partition=partition)

    async def read(self, topic: str, partition: int, count: int) -> None:
        """The group reads so many records of a partition."""
        at = TopicPartition(topic, partition)
        claims = await claim_partitions(self.pool, self.group, "test", [at])
        async with transaction(self.pool) as conn:
            await move_position(conn, self.group, claims[at], (claims[at].next_offset or 0) + count)

    def probe(self) -> LagProbe:
        return LagProbe(self.bootstrap, self.pool, self.group, (self.answers, self.outcomes))


@pytest.fixture
async def broker(kafka: Kafka, database: str) -> AsyncIterator[Broker]:
    own = uuid.uuid4().hex
    names = f"answers-{own}", f"outcomes-{own}"
    await ensure_topics(kafka.bootstrap, [TopicSpec(name, 2) for name in names])
    async with (
        create_pool(database, application_name="test") as pool,
        Producer(kafka.bootstrap, client_id="test") as producer,
    ):
        await migrate(pool, MIGRATIONS)
        yield Broker(kafka.bootstrap, pool, producer, *names, f"{GROUP}-{own}")


async def test_the_first_answer_already_counts_what_nobody_has_claimed(broker: Broker) -> None:
    await broker.write(broker.answers, 1, 3)
    await broker.write(broker.outcomes, 0)
    probe = broker.probe()
    try:
        first = await probe.read()
    finally:
        await probe.close()
    assert (first.total, first.dead_letters) == (4, 0)
    assert first.behind(broker.answers) == {1}
    assert first.behind(broker.outcomes) == {0}


async def test_what_was_read_waits_no_more_and_what_was_parked_is_counted(broker: Broker) -> None:
    probe = broker.probe()
    try:
        assert (await probe.read()).total == 0
        for partition in (0, 1):
            await broker.write(broker.answers, partition, 2)
            await broker.read(broker.answers, partition, 2 - partition)
        assert (await probe.read()).behind(broker.answers) == {1}
        await broker.read(broker.answers, 1, 1)
        await ensure_topics(broker.bootstrap, [TopicSpec(dead_letter(broker.group), 1)])
        await broker.write(dead_letter(broker.group), 0)
        found = await probe.read()
        assert (found.total, found.dead_letters) == (0, 1)
        assert probe.last is found
    finally:
        await probe.close()


async def test_a_partition_that_the_broker_does_not_name_is_not_taken_for_read(broker: Broker) -> None:
    await broker.write(broker.answers, 0)
    await broker.read(broker.answers, 2, 1)
    probe = broker.probe()
    try:
        with pytest.raises(Unavailable) as caught:
            await probe.read()
    finally:
        await probe.close()
    assert caught.value.reason == "KAFKA_UNAVAILABLE"
