"""The consumer loop: each record has its effect once, in order within its partition.

The handler gets (conn, records) inside one PostgreSQL transaction that also moves the position. Positions live in
`consumer_offset`; Kafka's own commits are not used. A claim of a partition raises its epoch, so that a consumer that
lost the partition without noticing cannot commit. Several topics with equal partition counts are co-assigned:
partition p of all of them belongs to one member.

Records that cannot be processed go to `dead-letter.<group>` before the position moves. Everything transient (Kafka
or PostgreSQL down, a lost race) is retried with the batch in hand.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import IllegalStateError, KafkaError
from prometheus_client import Counter, Gauge

from flywheel_common.context import ANONYMOUS, Call, current_call
from flywheel_common.errors import FlywheelError
from flywheel_common.ids import new_id
from flywheel_common.kafka.client import stop_consumer, unavailable
from flywheel_common.kafka.dead_letters import DeadLetters, PoisonError
from flywheel_common.kafka.envelope import parse_event
from flywheel_common.kafka.errors import TooMuchPoison
from flywheel_common.kafka.offsets import (
    Claim,
    Fenced,
    claim_partitions,
    fresh_events,
    move_position,
    trim_events,
)
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.record import Record
from flywheel_common.postgres.pool import Connection, Pool, is_connection_loss, transaction
from flywheel_common.telemetry.logs import get_logger

__all__ = ["ConsumerLoop", "Handler", "PoisonError", "Positions", "Record", "TopicPartition"]

log = get_logger(__name__)

Handler = Callable[[Connection, Sequence[Record]], Awaitable[None]]
"""(conn, records of one partition in offset order). Without a pool, conn is None."""
Positions = Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, int | None]]]
"""Where to begin, for a loop whose handler stores its own offsets; None = the beginning."""

records_total = Counter("flywheel_consumer_records", "Records whose effect is committed", ["group", "topic"])
poison_total = Counter(
    "flywheel_consumer_poison", "Records parked in the dead-letter topic", ["group", "topic"]
)
retries_total = Counter("flywheel_consumer_retries", "Batches tried again", ["group", "reason"])
lag_records = Gauge(
    "flywheel_consumer_lag", "Records between the position and the end", ["group", "topic", "partition"]
)

ISOLATION_ATTEMPTS = 3


@dataclass
class _Stats:
    """What happened so far: for logs and tests."""

    records: int = 0
    poison: int = 0
    fenced: int = 0
    assignments: int = 0


class ConsumerLoop:
    """`await loop.run()` as a background task. Exactly one of `topics` and `pattern` is given.

    With `pool`, positions are stored with the effect. Without, the handler stores its own: `positions` says where to
    begin (default: Kafka's commits), after each batch the offsets are committed to Kafka if `commit_to_kafka`, else
    by `commit(...)`. `dedupe` passes each event id to the handler once per group. `decode_events=False` leaves
    `record.event` None for topics that hold no envelopes. `member` names a member that comes back under its name (of a
    StatefulSet, say): started again within the session timeout it has its partitions at once, without a rebalance.
    """

    def __init__(
        self,
        *,
        bootstrap: str,
        group: str,
        topics: Sequence[str] = (),
        pattern: str | None = None,
        handler: Handler,
        pool: Pool | None = None,
        dedupe: bool = False,
        decode_events: bool = True,
        batch_records: int = 500,
        concurrency: int = 1,
        positions: Positions | None = None,
        commit_to_kafka: bool = True,
        max_record_bytes: int = 8 * 1024 * 1024,
        session_timeout_seconds: float = 10.0,
        keep_event_ids_days: float = 7.0,
        poison_limit: int = 1000,
        member: str = "",
    ) -> None:
        if bool(topics) == bool(pattern):
            raise ValueError("give either topics or a pattern")
        if dedupe and pool is None:
            raise ValueError("dedupe needs a pool: the ids are stored with the effect")
        self.group = group
        self.stats = _Stats()
        self._bootstrap = bootstrap
        self._topics = list(topics)
        self._pattern = pattern
        self._handler = handler
        self._pool = pool
        self._dedupe = dedupe
        self._decode = decode_events
        self._batch = batch_records
        self._positions = positions
        self._commit_to_kafka = commit_to_kafka
        self._max_record_bytes = max_record_bytes
        self._session_timeout = session_timeout_seconds
        self._keep_days = keep_event_ids_days
        self._member = member or None
        self._owner = new_id()
        self._slots = asyncio.Semaphore(concurrency)
        self._claims: dict[TopicPartition, Claim] = {}
        self._consumer: AIOKafkaConsumer | None = None
        self._producer = Producer(bootstrap, client_id=f"{group}-dead-letters")
        self._dead_letters = DeadLetters(bootstrap, self._producer, group, poison_limit)
        self._trimmed = 0.0

    @property
    def assigned(self) -> list[TopicPartition]:
        """The partitions this member works on now."""
        return sorted(self._claims)

    async def run(self) -> None:
        """Never returns; recovers from outages of Kafka and PostgreSQL. Raises TooMuchPoison when nothing but poison
        comes: that is a bug or a wrong topic, not bad records."""
        delay = 0.2
        try:
            while True:
                started = asyncio.get_running_loop().time()
                try:
                    await self._session()
                except TooMuchPoison:
                    raise
                except (KafkaError, OSError, TimeoutError) as error:
                    log.warning("consumer reconnects", group=self.group, error=type(error).__name__)
                except FlywheelError as error:
                    if not error.retryable:
                        raise
                    log.warning("consumer reconnects", group=self.group, error=error.reason)
                delay = 0.2 if asyncio.get_running_loop().time() - started > 30 else min(delay * 2, 5.0)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
        finally:
            await self._producer.close()

    def rewind(self) -> None:
        """Forget the positions in memory: the next poll asks for them again (for a store that lost data)."""
        self._claims.clear()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commits next offsets to Kafka, for a handler that stores its own. Raises Unavailable."""
        if self._consumer is None:
            return
        held = {tp: offset for tp, offset in offsets.items() if tp in self._consumer.assignment()}
        try:
            if held:
                await self._consumer.commit(held)
        except (KafkaError, IllegalStateError) as error:
            raise unavailable(error) from error

    async def _session(self) -> None:
        """The life of one Kafka consumer."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=self.group,
            client_id=f"{self.group}-{self._owner[-6:]}",
            group_instance_id=self._member,
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
            self._consumer = consumer
            while True:
                await self._step(consumer)
        finally:
            self._consumer = None
            self._claims.clear()
            await stop_consumer(consumer, seconds=5)

    async def _step(self, consumer: AIOKafkaConsumer) -> None:
        unclaimed = [tp for tp in consumer.assignment() if tp not in self._claims]
        if unclaimed:
            await self._claim(consumer, unclaimed)
        claimed = [tp for tp in self._claims if tp in consumer.assignment()]
        if not claimed:
            await asyncio.sleep(0.05)
            return
        try:
            polled = await consumer.getmany(*claimed, timeout_ms=500, max_records=self._batch)
        except IllegalStateError:  # rebalanced between the two lines above
            return
        batches = [(tp, self._claims[tp], raw) for tp, raw in polled.items() if raw and tp in self._claims]
        if len(batches) == 1:
            await self._process(*batches[0])
        elif batches:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for batch in batches:
                        tasks.create_task(self._process(*batch))
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None
        for tp, _, raw in batches:
            end = consumer.highwater(tp)
            if end is not None:
                lag_records.labels(self.group, tp.topic, tp.partition).set(max(0, end - raw[-1].offset - 1))
        await self._trim()

    async def _claim(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        if self._pool is not None:
            claims = await claim_partitions(self._pool, self.group, self._owner, partitions)
        elif self._positions is not None:
            found = await self._positions(partitions)
            claims = {tp: Claim(tp, found.get(tp), 0) for tp in partitions}
        else:
            claims = {tp: Claim(tp, await consumer.committed(tp), 0) for tp in partitions}
        try:
            for tp, claim in claims.items():
                if claim.next_offset is None:
                    await consumer.seek_to_beginning(tp)
                else:
                    consumer.seek(tp, claim.next_offset)
                self._claims[tp] = claim
        except IllegalStateError:
            self._claims.clear()
            return
        self.stats.assignments += 1
        log.info(
            "partitions claimed",
            group=self.group,
            partitions=[f"{tp.topic}/{tp.partition}" for tp in sorted(claims)],
        )

    async def _process(self, tp: TopicPartition, claim: Claim, raw: Sequence[Any]) -> None:
        async with self._slots:
            records: list[Record] = []
            for item in raw:
                record = Record.of(item)
                if self._decode:
                    try:
                        record.event = parse_event(record.value)
                    except FlywheelError as error:
                        await self._park(tp, claim, PoisonError(error.message, [record]))
                        continue
                records.append(record)
            await self._apply(tp, claim, records, raw[-1].offset + 1)

    async def _apply(
        self, tp: TopicPartition, claim: Claim, records: list[Record], next_offset: int, attempts: int = 0
    ) -> None:
        """Runs the handler over the records and moves the position to `next_offset`, however often it takes."""
        delay = 0.1
        while self._claims.get(tp) is claim:
            try:
                await self._attempt(tp, claim, records, next_offset)
            except Fenced:
                self.stats.fenced += 1
                self._claims.pop(tp, None)
                log.warning(
                    "partition was claimed by another member",
                    group=self.group,
                    topic=tp.topic,
                    partition=tp.partition,
                )
            except PoisonError as poison:
                await self._park(tp, claim, poison)
                parked = {record.offset for record in poison.records}
                left = [record for record in records if record.offset not in parked]
                if len(left) == len(records):
                    raise RuntimeError("PoisonError must name records of the batch") from poison
                records = left
            except Exception as error:
                if _is_transient(error):
                    reason = getattr(error, "reason", type(error).__name__)
                    retries_total.labels(self.group, reason).inc()
                    log.warning("batch waits", group=self.group, topic=tp.topic, reason=reason)
                    await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                    delay = min(delay * 2, 5.0)
                    continue
                attempts += 1
                log.error(
                    "handler failed",
                    group=self.group,
                    topic=tp.topic,
                    records=len(records),
                    attempt=attempts,
                    exc_info=error,
                )
                if len(records) > 1:
                    middle = len(records) // 2
                    await self._apply(tp, claim, records[:middle], records[middle].offset)
                    records = records[middle:]
                elif attempts < ISOLATION_ATTEMPTS or not records:
                    await asyncio.sleep(delay)
                else:
                    await self._park(tp, claim, PoisonError(f"{type(error).__name__}", records))
                    records = []
            else:
                self.stats.records += len(records)
                records_total.labels(self.group, tp.topic).inc(len(records))
                if records:
                    self._dead_letters.progress()
                return

    async def _attempt(
        self, tp: TopicPartition, claim: Claim, records: list[Record], next_offset: int
    ) -> None:
        token = current_call.set(_call_of(self.group, tp.topic, records))
        try:
            if self._pool is None:
                if records:
                    await self._handler(None, records)
                if self._commit_to_kafka:
                    await self.commit({tp: next_offset})
                return
            async with transaction(self._pool) as conn:
                fresh = await fresh_events(conn, self.group, records) if self._dedupe else records
                if fresh:
                    await self._handler(conn, fresh)
                await move_position(conn, self.group, claim, next_offset)
        finally:
            current_call.reset(token)

    async def _park(self, tp: TopicPartition, claim: Claim, poison: PoisonError) -> None:
        delay = 0.1
        while self._claims.get(tp) is claim:
            try:
                await self._dead_letters.park(poison)
            except FlywheelError as error:
                if not error.retryable or isinstance(error, TooMuchPoison):
                    raise
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
            else:
                self.stats.poison += len(poison.records)
                poison_total.labels(self.group, tp.topic).inc(len(poison.records))
                return

    async def _trim(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._dedupe and self._pool is not None and now - self._trimmed > 600:
            self._trimmed = now
            await trim_events(self._pool, self.group, self._keep_days)


class _Listener(ConsumerRebalanceListener):
    """Only forgets: positions are read by the loop itself, because SQL in here would stall heartbeats."""

    def __init__(self, loop: ConsumerLoop) -> None:
        self._loop = loop

    async def on_partitions_revoked(self, revoked: Any) -> None:
        self._loop.rewind()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        self._loop.rewind()


def _call_of(group: str, topic: str, records: Sequence[Record]) -> Call:
    traced = next(
        (r.event.trace_parent for r in reversed(records) if r.event is not None and r.event.trace_parent), ""
    )
    return Call(f"consume {topic}", ANONYMOUS, group, None, traced)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, FlywheelError):
        return error.retryable
    return isinstance(error, (TimeoutError, KafkaError, OSError)) or is_connection_loss(error)
