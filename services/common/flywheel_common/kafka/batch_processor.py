"""Processing of fetched records: handler and position in one transaction, retries, poison records."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from prometheus_client import Counter

from flywheel_common.context import ANONYMOUS, Call, current_call
from flywheel_common.errors import FlywheelError
from flywheel_common.kafka.dead_letters import DeadLetters
from flywheel_common.kafka.envelope import parse_event
from flywheel_common.kafka.errors import TooMuchPoison
from flywheel_common.kafka.offsets import Claim, Fenced, fresh_events, move_position
from flywheel_common.kafka.poison import PIECE_RECORDS, Batch, PoisonError, isolate
from flywheel_common.kafka.record import Record
from flywheel_common.postgres.pool import Connection, Pool, is_connection_loss, transaction
from flywheel_common.tasks import TaskGroup
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)

Handler = Callable[[Connection, Sequence[Record]], Awaitable[None]]
"""Called with (conn, records of one partition in offset order). Without a pool, conn is None."""
Skip = Callable[[TopicPartition, int], Awaitable[None]]

records_total = Counter("flywheel_consumer_records", "Records whose effect is committed", ["group", "topic"])
poison_total = Counter(
    "flywheel_consumer_poison", "Records sent to the dead-letter topic", ["group", "topic"]
)
retries_total = Counter(
    "flywheel_consumer_retries", "Batches tried again after a transient error", ["group", "reason"]
)

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 5.0


@dataclass
class Stats:
    """Counts since the start, for logs and tests."""

    records: int = 0
    poison: int = 0
    fenced: int = 0
    assignments: int = 0


class BatchProcessor:
    """Gives records to the handler until their effects are committed or their partition is lost.

    `claims` is shared with the consumer loop, which removes a claim when the partition is reassigned. With
    `pool`, the handler and the new position share a transaction. Without, the handler stores its own
    positions, and `skip(partition, next_offset)` moves them past records that went to the dead letters.
    """

    def __init__(
        self,
        *,
        group: str,
        handler: Handler,
        pool: Pool | None,
        skip: Skip | None = None,
        claims: dict[TopicPartition, Claim],
        dead_letters: DeadLetters,
        stats: Stats,
        dedupe: bool,
        decode_events: bool,
        concurrency: int,
    ) -> None:
        self._group = group
        self._handler = handler
        self._pool = pool
        self._skip = skip
        self._claims = claims
        self._dead_letters = dead_letters
        self._stats = stats
        self._dedupe = dedupe
        self._decode = decode_events
        self._slots = asyncio.Semaphore(concurrency)

    async def process_all(self, batches: Sequence[tuple[Claim, Sequence[Any]]]) -> None:
        """Processes the records of several partitions. Raises TooMuchPoison."""
        if len(batches) == 1:
            await self.process(*batches[0])
        elif batches:
            try:
                async with TaskGroup() as tasks:
                    for claim, fetched in batches:
                        tasks.create_task(self.process(claim, fetched))
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None

    async def process(self, claim: Claim, fetched: Sequence[Any]) -> None:
        """Processes the records that were fetched from the claimed partition. Raises TooMuchPoison."""
        async with self._slots:
            records: list[Record] = []
            for item in fetched:
                record = Record.of(item)
                if self._decode:
                    try:
                        record.event = parse_event(record.value)
                    except FlywheelError as error:
                        await self._send_to_dead_letters(claim, PoisonError(error.message, [record]))
                        continue
                records.append(record)
            await self._apply(claim, Batch(tuple(records), fetched[-1].offset + 1))

    async def _apply(self, claim: Claim, whole: Batch) -> None:
        """Repeats attempts until every record has its effect or is in the dead-letter topic."""
        pending = [whole]
        delay = FIRST_DELAY_SECONDS
        while pending and self._holds(claim):
            batch = pending.pop(0)
            try:
                await self._attempt(claim, batch)
            except Fenced:
                self._drop(claim)
            except PoisonError as poison:
                if self._pool is not None and len(batch.records) > PIECE_RECORDS:
                    pending[:0] = batch.pieces(PIECE_RECORDS)
                    continue
                await self._send_to_dead_letters(claim, poison)
                pending.insert(0, batch.without(poison))
            except Exception as error:  # noqa: BLE001 - a handler may raise anything
                if _is_transient(error):
                    pending.insert(0, batch)
                    self._count_retry(claim, error)
                    await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                    delay = min(delay * 2, LONGEST_DELAY_SECONDS)
                    continue
                self._log_failure(claim, batch, error)
                step = isolate(batch)
                pending[:0] = step.batches
                if step.poison:
                    await self._send_to_dead_letters(claim, PoisonError(type(error).__name__, step.poison))
                elif len(step.batches) == 1:
                    await asyncio.sleep(delay)
            else:
                delay = FIRST_DELAY_SECONDS
                self._count_success(claim, batch)

    async def _attempt(self, claim: Claim, batch: Batch) -> None:
        """Runs the handler once and moves the position. Raises whatever the handler raises, and Fenced."""
        token = current_call.set(_call_of(self._group, claim.partition.topic, batch.records))
        try:
            if self._pool is None:
                reached = -1
                if batch.records:
                    await self._handler(None, batch.records)
                    reached = batch.records[-1].offset + 1
                if self._skip is not None and reached < batch.next_offset:
                    await self._skip(claim.partition, batch.next_offset)
                return
            async with transaction(self._pool) as conn:
                records: Sequence[Record] = batch.records
                if self._dedupe:
                    records = await fresh_events(conn, self._group, records)
                if records:
                    await self._handler(conn, records)
                await move_position(conn, self._group, claim, batch.next_offset)
        finally:
            current_call.reset(token)

    async def _send_to_dead_letters(self, claim: Claim, poison: PoisonError) -> None:
        """Retries while Kafka is unavailable and the partition is still claimed."""
        delay = FIRST_DELAY_SECONDS
        while self._holds(claim):
            try:
                await self._dead_letters.send(poison)
            except FlywheelError as error:
                if not error.retryable or isinstance(error, TooMuchPoison):
                    raise
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)
            else:
                self._stats.poison += len(poison.records)
                poison_total.labels(self._group, claim.partition.topic).inc(len(poison.records))
                return

    def _holds(self, claim: Claim) -> bool:
        return self._claims.get(claim.partition) is claim

    def _drop(self, claim: Claim) -> None:
        self._stats.fenced += 1
        self._claims.pop(claim.partition, None)
        log.warning(
            "position not moved: the partition is claimed again",
            group=self._group,
            topic=claim.partition.topic,
            partition=claim.partition.partition,
        )

    def _count_success(self, claim: Claim, batch: Batch) -> None:
        self._stats.records += len(batch.records)
        records_total.labels(self._group, claim.partition.topic).inc(len(batch.records))
        if batch.records:
            self._dead_letters.reset()

    def _count_retry(self, claim: Claim, error: Exception) -> None:
        reason = getattr(error, "reason", type(error).__name__)
        retries_total.labels(self._group, reason).inc()
        log.warning("batch will be retried", group=self._group, topic=claim.partition.topic, reason=reason)

    def _log_failure(self, claim: Claim, batch: Batch, error: Exception) -> None:
        log.error(
            "handler failed",
            group=self._group,
            topic=claim.partition.topic,
            records=len(batch.records),
            attempt=batch.failures + 1,
            exc_info=error,
        )


def _call_of(group: str, topic: str, records: Sequence[Record]) -> Call:
    """The call that the handler runs in; it continues the trace of the last record that has one."""
    events = (record.event for record in reversed(records) if record.event is not None)
    traceparent = next((event.trace_parent for event in events if event.trace_parent), "")
    return Call(f"consume {topic}", ANONYMOUS, group, None, traceparent)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, FlywheelError):
        return error.retryable
    return isinstance(error, (TimeoutError, KafkaError, OSError)) or is_connection_loss(error)
