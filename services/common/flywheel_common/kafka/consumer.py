"""The consumer loop of a group: each record has its effect once, in order within its partition.

The handler runs in a PostgreSQL transaction that also moves the position in `consumer_offset`; Kafka's own
commits are not used. Claiming a partition raises its epoch, so that a consumer that lost the partition
without noticing cannot commit. Topics with equal partition counts are co-assigned: partition p of all of them
belongs to one member.

Poison records go to the topic `dead-letter.<group>` before the position moves (kafka/poison.py). After a
transient error (Kafka or PostgreSQL is down, a concurrent change won) the same batch is retried
(kafka/batch_processor.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import IllegalStateError
from prometheus_client import Gauge

from flywheel_common.ids import new_id
from flywheel_common.kafka.batch_processor import BatchProcessor, Handler, Stats
from flywheel_common.kafka.client import stop_consumer
from flywheel_common.kafka.dead_letters import DeadLetters
from flywheel_common.kafka.offsets import Claim, claim_partitions, trim_events
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.reconnect import reconnecting
from flywheel_common.postgres.pool import Pool
from flywheel_common.telemetry.logs import get_logger

# TopicPartition is exported for services, which must not import the driver.
__all__ = ["ConsumerLoop", "TopicPartition"]

log = get_logger(__name__)

lag_records = Gauge(
    "flywheel_consumer_lag", "Records between the position and the end", ["group", "topic", "partition"]
)

LOST_PARTITION = (IllegalStateError, AssertionError)
"""What aiokafka raises for a partition that a rebalance took away (AssertionError: no assignment at all)."""
TRIM_SECONDS = 600.0
"""How often the ids of old events are deleted."""


class ConsumerLoop:
    """`await loop.run()` as a background task. Exactly one of `topics` and `pattern` is given.

    `dedupe` passes each event id to the handler once per group. `decode_events=False` leaves `record.event`
    None, for topics that hold no envelopes. After a poll of fewer than `batch_records` records the next one
    waits `linger_seconds`, so that more records share a transaction. For a handler that stores its own
    positions, and for topics that come and go, see claimed_consumer.py."""

    def __init__(
        self,
        *,
        bootstrap: str,
        group: str,
        topics: Sequence[str] = (),
        pattern: str | None = None,
        handler: Handler,
        pool: Pool,
        dedupe: bool = False,
        decode_events: bool = True,
        batch_records: int = 500,
        linger_seconds: float = 0.0,
        concurrency: int = 1,
        max_record_bytes: int = 8 * 1024 * 1024,
        session_timeout_seconds: float = 10.0,
        keep_event_ids_days: float = 7.0,
        poison_limit: int = 1000,
    ) -> None:
        if bool(topics) == bool(pattern):
            raise ValueError("give either topics or a pattern")
        self.group = group
        self.stats = Stats()
        self._bootstrap = bootstrap
        self._topics = list(topics)
        self._pattern = pattern
        self._pool = pool
        self._dedupe = dedupe
        self._batch = batch_records
        self._linger = linger_seconds
        self._max_record_bytes = max_record_bytes
        self._session_timeout = session_timeout_seconds
        self._keep_days = keep_event_ids_days
        self._owner = new_id()
        self._claims: dict[TopicPartition, Claim] = {}
        self._producer = Producer(bootstrap, client_id=f"{group}-dead-letters")
        self._processor = BatchProcessor(
            group=group,
            handler=handler,
            pool=pool,
            claims=self._claims,
            dead_letters=DeadLetters(bootstrap, self._producer, group, poison_limit),
            stats=self.stats,
            dedupe=dedupe,
            decode_events=decode_events,
            concurrency=concurrency,
        )
        self._trimmed = 0.0

    @property
    def assigned(self) -> list[TopicPartition]:
        """The partitions that this member has claimed."""
        return sorted(self._claims)

    async def run(self) -> None:
        """Never returns; reconnects after outages of Kafka and PostgreSQL. Raises TooMuchPoison when a long
        run of records is poison: the cause is a bug or a wrong topic, not single bad records."""
        try:
            await reconnecting(self.group, self._session)
        finally:
            await self._producer.close()

    def rewind(self) -> None:
        """Drops the claims, so that the next poll reads the positions again."""
        self._claims.clear()

    async def _session(self) -> None:
        """Polls with one Kafka consumer until it fails."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=self.group,
            client_id=f"{self.group}-{self._owner[-6:]}",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=[RangePartitionAssignor],
            session_timeout_ms=int(self._session_timeout * 1000),
            heartbeat_interval_ms=int(self._session_timeout * 1000 / 5),
            max_poll_interval_ms=300_000,
            max_partition_fetch_bytes=self._max_record_bytes,
            metadata_max_age_ms=5_000,
            retry_backoff_ms=100,
            request_timeout_ms=15_000,
        )
        consumer.subscribe(topics=self._topics or (), pattern=self._pattern, listener=_Listener(self))
        try:
            await consumer.start()
            while True:
                await self._step(consumer)
        finally:
            self._claims.clear()
            await stop_consumer(consumer, seconds=5)

    async def _step(self, consumer: AIOKafkaConsumer) -> None:
        """Claims new partitions, polls once and processes what came."""
        unclaimed = [tp for tp in consumer.assignment() if tp not in self._claims]
        if unclaimed:
            await self._claim(consumer, unclaimed)
        claimed = [tp for tp in self._claims if tp in consumer.assignment()]
        if not claimed:
            await asyncio.sleep(0.05)
            return
        try:
            polled = await consumer.getmany(*claimed, timeout_ms=500, max_records=self._batch)
        except LOST_PARTITION:  # a rebalance came between the two statements
            return
        batches = [(self._claims[tp], raw) for tp, raw in polled.items() if raw and tp in self._claims]
        await self._processor.process_all(batches)
        for claim, raw in batches:
            tp = claim.partition
            # A rebalance may have taken the partition while its records were processed.
            end = consumer.highwater(tp) if tp in consumer.assignment() else None
            if end is not None:
                lag_records.labels(self.group, tp.topic, tp.partition).set(max(0, end - raw[-1].offset - 1))
        await self._trim()
        if batches and self._linger and sum(len(raw) for _, raw in batches) < self._batch:
            await asyncio.sleep(self._linger)

    async def _claim(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        """Claims partitions and moves the consumer to their stored positions."""
        claims = await claim_partitions(self._pool, self.group, self._owner, partitions)
        unread = [tp for tp, claim in claims.items() if claim.next_offset is None]
        beginnings = await consumer.beginning_offsets(unread) if unread else {}
        claimed = [tp for tp, claim in claims.items() if self._seek(consumer, claim, beginnings)]
        if claimed:
            self.stats.assignments += 1
            names = [f"{tp.topic}/{tp.partition}" for tp in sorted(claimed)]
            log.info("partitions claimed", group=self.group, partitions=names)

    def _seek(
        self, consumer: AIOKafkaConsumer, claim: Claim, beginnings: Mapping[TopicPartition, int]
    ) -> bool:
        """Keeps a claim and moves the consumer to its position; False if a rebalance took the partition."""
        tp = claim.partition
        try:
            consumer.seek(tp, beginnings[tp] if claim.next_offset is None else claim.next_offset)
        except LOST_PARTITION:
            return False
        self._claims[tp] = claim
        return True

    async def _trim(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._dedupe and now - self._trimmed > TRIM_SECONDS:
            self._trimmed = now
            await trim_events(self._pool, self.group, self._keep_days)


class _Listener(ConsumerRebalanceListener):
    """Drops the claims on a rebalance. The loop reads the positions, because SQL in here would delay
    heartbeats."""

    def __init__(self, loop: ConsumerLoop) -> None:
        self._loop = loop

    async def on_partitions_revoked(self, revoked: Any) -> None:
        self._loop.rewind()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        self._loop.rewind()
