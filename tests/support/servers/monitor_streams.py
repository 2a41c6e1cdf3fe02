"""The stream that the monitor's consumer group reads, in memory or in Kafka, and its lag."""

from __future__ import annotations

import asyncio
import signal
import uuid
from typing import Protocol

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.offsets import claim_partitions, move_position
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.topics import TopicSpec, dead_letter
from flywheel_common.postgres.pool import Pool, transaction
from flywheel_local.kafka import Kafka
from flywheel_monitor.fakes.lag import MemoryLag
from flywheel_monitor.ingest.ports import ConsumerLag
from flywheel_monitor.store.kafka.lag import KafkaLag

PARTITIONS = 2


class Stream(Protocol):
    """The topics `predictions` and `outcomes` with two partitions each, a group that reads them, and the
    group's lag."""

    predictions: str
    outcomes: str
    lag: ConsumerLag

    async def write(self, topic: str, partition: int, count: int = 1) -> None: ...

    async def read(self, topic: str, partition: int, count: int) -> None:
        """The group claims a partition and processes `count` more of its records; 0: it only claims it."""
        ...

    async def drop(self, topic: str, partition: int, before: int) -> None:
        """The broker deletes the records of a partition whose offset is below `before`."""
        ...

    async def park(self, count: int) -> None:
        """Add records to the dead-letter topic of the group."""
        ...

    async def stop(self) -> None: ...

    async def restart(self) -> None: ...

    def hang(self) -> None:
        """The broker accepts connections and does not respond."""
        ...

    def resume(self) -> None: ...


class MemoryStream:
    predictions, outcomes = "predictions", "outcomes"

    def __init__(self) -> None:
        self.lag = MemoryLag({self.predictions: PARTITIONS, self.outcomes: PARTITIONS})
        self._read: dict[tuple[str, int], int] = {}

    async def write(self, topic: str, partition: int, count: int = 1) -> None:
        self.lag.write(topic, partition, count)

    async def read(self, topic: str, partition: int, count: int) -> None:
        if count:
            self._read[topic, partition] = self._read.get((topic, partition), 0) + count
        self.lag.commit(topic, partition, self._read.get((topic, partition)))

    async def drop(self, topic: str, partition: int, before: int) -> None:
        self.lag.drop(topic, partition, before)

    async def park(self, count: int) -> None:
        self.lag.park(count)

    async def stop(self) -> None:
        self.lag.down = True

    async def restart(self) -> None:
        self.lag.down = False

    def hang(self) -> None:
        self.lag.down = True

    def resume(self) -> None:
        self.lag.down = False


class KafkaStream:
    """Topics with unique names in Kafka, and positions in PostgreSQL."""

    def __init__(self, kafka: Kafka, pool: Pool, producer: Producer) -> None:
        self._kafka, self._pool, self._producer = kafka, pool, producer
        own = uuid.uuid4().hex
        self.predictions, self.outcomes, self.group = (
            f"{name}-{own}" for name in ("predictions", "outcomes", "group")
        )
        self.lag = KafkaLag(kafka.bootstrap, pool, self.group, (self.predictions, self.outcomes))

    async def create(self) -> None:
        await ensure_topics(
            self._kafka.bootstrap, [TopicSpec(t, PARTITIONS) for t in (self.predictions, self.outcomes)]
        )

    async def write(self, topic: str, partition: int, count: int = 1) -> None:
        for _ in range(count):
            await self._producer.send(topic, b"record", partition=partition)

    async def read(self, topic: str, partition: int, count: int) -> None:
        at = TopicPartition(topic, partition)
        claims = await claim_partitions(self._pool, self.group, "test", [at])
        if count:
            async with transaction(self._pool) as conn:
                await move_position(conn, self.group, claims[at], (claims[at].next_offset or 0) + count)

    async def drop(self, topic: str, partition: int, before: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._kafka.bootstrap)
        await admin.start()
        try:
            await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)})
        finally:
            await admin.close()

    async def park(self, count: int) -> None:
        await ensure_topics(self._kafka.bootstrap, [TopicSpec(dead_letter(self.group), 1)])
        await self.write(dead_letter(self.group), 0, count)

    async def stop(self) -> None:
        await asyncio.to_thread(self._kafka.kill)

    async def restart(self) -> None:
        await asyncio.to_thread(self._kafka.restart)

    def hang(self) -> None:
        assert self._kafka.process is not None
        self._kafka.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._kafka.process is not None
        self._kafka.process.signal(signal.SIGCONT)
