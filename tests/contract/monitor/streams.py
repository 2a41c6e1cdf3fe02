"""The stream that the monitor's consumer group reads, in memory or in Kafka, and two ways of asking what waits in it."""

from __future__ import annotations

import asyncio
import signal
import uuid
from typing import Protocol

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from flywheel_common.errors import Unavailable
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.offsets import claim_partitions, move_position
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.topics import TopicSpec, dead_letter
from flywheel_common.postgres.pool import Pool, transaction
from flywheel_local.kafka import Kafka
from flywheel_monitor.memory_lag import MemoryLag
from flywheel_monitor.ports import ConsumerLag
from flywheel_protos.monitor.v1 import monitor_pb2 as pb
from flywheel_protos.monitor.v1 import monitor_pb2_grpc

PARTITIONS = 2


class Stream(Protocol):
    """Two topics of two partitions, `answers` and `outcomes`, and a group that reads them."""

    answers: str
    outcomes: str

    async def write(self, topic: str, partition: int, count: int = 1) -> None: ...

    async def read(self, topic: str, partition: int, count: int) -> None:
        """The group claims a partition and processes so many more of its records; 0: it only claims it."""
        ...

    async def drop(self, topic: str, partition: int, before: int) -> None:
        """The broker keeps the records of a partition no longer whose offset is below `before`."""
        ...

    async def park(self, count: int) -> None:
        """So many records go to the dead letters of the group."""
        ...

    async def go_away(self) -> None: ...

    async def come_back(self) -> None: ...

    def hang(self) -> None:
        """The broker takes questions and answers none."""
        ...

    def go_on(self) -> None: ...


class MemoryStream:
    answers, outcomes = "answers", "outcomes"

    def __init__(self) -> None:
        self.lag = MemoryLag({self.answers: PARTITIONS, self.outcomes: PARTITIONS})
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

    async def go_away(self) -> None:
        self.lag.away = True

    async def come_back(self) -> None:
        self.lag.away = False

    def hang(self) -> None:
        self.lag.away = True

    def go_on(self) -> None:
        self.lag.away = False


class KafkaStream:
    """In topics under names of its own, with the positions in PostgreSQL."""

    def __init__(self, kafka: Kafka, pool: Pool, producer: Producer) -> None:
        self._kafka, self._pool, self._producer = kafka, pool, producer
        own = uuid.uuid4().hex
        self.answers, self.outcomes, self.group = (
            f"{name}-{own}" for name in ("answers", "outcomes", "group")
        )

    async def create(self) -> None:
        await ensure_topics(
            self._kafka.bootstrap, [TopicSpec(t, PARTITIONS) for t in (self.answers, self.outcomes)]
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

    async def go_away(self) -> None:
        await asyncio.to_thread(self._kafka.kill)

    async def come_back(self) -> None:
        await asyncio.to_thread(self._kafka.restart)

    def hang(self) -> None:
        assert self._kafka.process is not None
        self._kafka.process.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._kafka.process is not None
        self._kafka.process.signal(signal.SIGCONT)


class Asked:
    """Asks the port itself."""

    def __init__(self, lag: ConsumerLag) -> None:
        self.lag = lag

    async def waiting(self) -> tuple[int, int]:
        """Records to read and dead letters, as they are now."""
        found = await self.lag.read()
        return found.total, found.dead_letters

    async def known(self) -> tuple[int, int]:
        """The same as it was known last, while it cannot be had."""
        with pytest.raises(Unavailable) as caught:
            await self.lag.read()
        assert "KAFKA_UNAVAILABLE" == caught.value.reason
        return self.lag.last.total, self.lag.last.dead_letters


class AskedOverGrpc:
    """Asks the service, which tells both by one RPC."""

    def __init__(self, stub: monitor_pb2_grpc.MonitorServiceStub) -> None:
        self._stub = stub

    async def waiting(self) -> tuple[int, int]:
        status = await self._stub.GetIngestStatus(pb.GetIngestStatusRequest(parent="projects/p"), timeout=20)
        return status.lag_records, status.dead_letters

    known = waiting
