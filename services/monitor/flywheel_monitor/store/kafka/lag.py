"""Consumer lag from the end offsets in Kafka and the positions in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition

from flywheel_common.deadline import in_time
from flywheel_common.kafka.client import close_quietly, kafka_errors, partitions_of, unavailable
from flywheel_common.kafka.errors import KafkaUnavailable
from flywheel_common.kafka.topics import dead_letter
from flywheel_common.postgres.pool import Pool, connection
from flywheel_monitor.ingest.lag import Lag, unread

_POSITIONS = "SELECT topic, partition, next_offset FROM consumer_offset WHERE consumer_group = $1"


class KafkaLag:
    """`ConsumerLag` that reads from the broker on every call; concurrent calls wait for each other."""

    def __init__(self, bootstrap: str, pool: Pool, group: str, topics: Sequence[str]) -> None:
        self._bootstrap = bootstrap
        self._pool = pool
        self._group = group
        self._topics = tuple(topics)
        self._consumer: AIOKafkaConsumer | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()
        self.last = Lag()

    async def read(self) -> Lag:
        async with in_time(_timed_out), self._lock:
            try:
                with kafka_errors():
                    async with asyncio.timeout(10):
                        self.last = await self._read()
            except BaseException:
                self._drop()
                raise
            return self.last

    async def close(self) -> None:
        self._drop()
        await asyncio.gather(*self._closing)

    async def _read(self) -> Lag:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self._bootstrap, client_id=f"{self._group}-lag", metadata_max_age_ms=5_000
            )
            self._consumer = consumer
            await consumer.start()
        consumer, dead = self._consumer, dead_letter(self._group)
        wanted = await partitions_of(consumer, (*self._topics, dead))
        # Positions are read before the ends, so that a record written in between counts as unread.
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_POSITIONS, self._group)
        positions = {TopicPartition(r["topic"], r["partition"]): r["next_offset"] for r in rows}
        if {tp for tp in positions if tp.topic in self._topics} - set(wanted):
            raise KafkaUnavailable(
                "The broker does not list every partition with a position: try again.",
                cause="StaleMetadata",
            )
        begins = await consumer.beginning_offsets(wanted)
        ends = await consumer.end_offsets(wanted)
        records, parked = {}, 0
        for tp in wanted:
            if tp.topic == dead:
                parked += ends[tp] - begins[tp]
                continue
            records[(tp.topic, tp.partition)] = unread(begins[tp], ends[tp], positions.get(tp))
        return Lag(records, parked)

    def _drop(self) -> None:
        """Discard the consumer; the next call makes a new one. Closing happens in the background, because
        a hung broker delays it."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            closing = asyncio.create_task(close_quietly(consumer.stop()))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def _timed_out() -> KafkaUnavailable:
    return unavailable(TimeoutError())
