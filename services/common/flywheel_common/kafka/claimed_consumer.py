"""A consumer without a Kafka group: its members share the partitions by claims in PostgreSQL (ADR 0036).

Each member looks at the live members and their claims once a second and after every change of the topics,
computes the assignment (assignment.py), claims what is free and gives up what is no longer its own. So a new
topic, or a new or dead member, concerns only the partitions that change hands: all others are read meanwhile.

A claim ends double work; it does not replace the fence of the effects. A member that lost its lease without
noticing may still call the handler, which therefore moves its stored positions only from the value it knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from flywheel_common.errors import FlywheelError
from flywheel_common.ids import new_id
from flywheel_common.kafka.assignment import assign
from flywheel_common.kafka.batch_processor import BatchProcessor, Handler, Skip, Stats
from flywheel_common.kafka.client import partition_counts, stop_consumer
from flywheel_common.kafka.consumer import lag_records
from flywheel_common.kafka.dead_letters import DeadLetters
from flywheel_common.kafka.membership import Membership
from flywheel_common.kafka.offsets import Claim
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.reconnect import reconnecting
from flywheel_common.kafka.stalls import StallWatch, names
from flywheel_common.kafka.topics import TopicSpec
from flywheel_common.postgres.pool import Pool
from flywheel_common.tasks import TaskGroup
from flywheel_common.telemetry.logs import get_logger

# TopicPartition is exported for services, which must not import the driver.
__all__ = ["ClaimedConsumer", "TopicPartition"]

log = get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often a member looks at the others: how soon it takes what they gave up."""
NEW_TOPIC_SECONDS = 0.2
"""How often it looks while Kafka is creating a topic."""
COUNT_SECONDS = 60.0
"""How often partitions that were added to topics are looked for."""
BEGIN_TOGETHER = 16
"""Partitions that begin at a time."""
BEGIN_SECONDS = 120.0
"""Longest time for one call of `begin`; then it is cancelled, logged and called again."""
LONGEST_DELAY_SECONDS = 5.0
END_SECONDS = 5.0
"""Longest time for `end` of a partition that is given up."""


@dataclass(eq=False, slots=True)
class _Held:
    """A claimed partition; it is read once `begin` has given its first offset."""

    epoch: int
    beginning: bool = False
    again: bool = False
    """`begin` must be called once more, because something changed while it ran."""


class ClaimedConsumer:
    """`await consumer.run()` as a background task.

    `topics()` gives the topics to read now; missing ones are created. `begin(partition)` is called after a
    partition was claimed and gives its first offset, 0 for the first record that Kafka has; it may take
    long, as the other partitions are read meanwhile. `end(partition)` is called before a partition is given
    up, when no batch of it is in flight. `skip(partition, next_offset)` is called when the records before
    this offset are handled or in the dead-letter topic, and the last ones are in the latter. `member` names a
    member over restarts; empty: a new name.
    """

    def __init__(
        self,
        *,
        bootstrap: str,
        group: str,
        pool: Pool,
        topics: Callable[[], Collection[TopicSpec]],
        begin: Callable[[TopicPartition], Awaitable[int]],
        end: Callable[[TopicPartition], Awaitable[None]],
        handler: Handler,
        skip: Skip | None = None,
        member: str = "",
        session_timeout_seconds: float = 10.0,
        batch_records: int = 500,
        max_record_bytes: int = 8 * 1024 * 1024,
        poison_limit: int = 1000,
    ) -> None:
        self.group = group
        self.member = member or new_id()
        self.stats = Stats()
        self._bootstrap = bootstrap
        self._topics = topics
        self._begin = begin
        self._end = end
        self._batch = batch_records
        self._max_record_bytes = max_record_bytes
        self._membership = Membership(pool, group, self.member, session_timeout_seconds)
        self._counts: dict[str, int] = {}
        self._counted = 0.0
        self._held: dict[TopicPartition, _Held] = {}
        self._claims: dict[TopicPartition, Claim] = {}
        """The held partitions that have begun."""
        self._next: dict[TopicPartition, int] = {}
        """Where to go on reading each of them."""
        self._reading: dict[TopicPartition, Claim] = {}
        """The claims for which the Kafka consumer is at the right position."""
        self._leaving: set[TopicPartition] = set()
        self._changed = asyncio.Event()
        self._processing = asyncio.Lock()
        self._slots = asyncio.Semaphore(BEGIN_TOGETHER)
        self._tasks: TaskGroup | None = None
        self._producer = Producer(bootstrap, client_id=f"{group}-dead-letters")
        self._processor = BatchProcessor(
            group=group,
            handler=handler,
            pool=None,
            skip=skip,
            claims=self._claims,
            dead_letters=DeadLetters(bootstrap, self._producer, group, poison_limit),
            stats=self.stats,
            dedupe=False,
            decode_events=True,
            concurrency=1,
        )

    @property
    def assigned(self) -> list[TopicPartition]:
        """The partitions that this member reads."""
        return sorted(self._claims)

    async def run(self) -> None:
        """Never returns; goes on after outages of Kafka and PostgreSQL. Raises TooMuchPoison when a long run
        of records is poison."""
        try:
            await self._membership.lease.run(self._work)
        finally:
            await self._producer.close()

    def topics_changed(self) -> None:
        """Look at `topics()` now."""
        self._changed.set()

    def restart(self, partitions: Collection[TopicPartition] | None = None) -> None:
        """Call `begin` again for the held ones of these partitions (None: all) and go on from its offsets."""
        for tp in list(self._held) if partitions is None else [tp for tp in partitions if tp in self._held]:
            self._claims.pop(tp, None)
            self._start(tp, self._held[tp])

    def restart_topics(self, topics: Collection[str]) -> None:
        """`restart` for all partitions of these topics."""
        self.restart([tp for tp in self._held if tp.topic in topics])

    async def _work(self, token: int) -> None:
        """Read and look at the group while the member's lease holds; cancelled when it is lost."""
        try:
            async with TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._look(token))
                tasks.create_task(reconnecting(self.group, self._session))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._tasks = None
            for tp in list(self._held):
                self._drop(tp)
            self._leaving.clear()

    # Which partitions to read

    async def _look(self, token: int) -> None:
        """Keep the claims of this member as the assignment says, until cancelled."""
        await self._membership.trim()
        while True:
            self._changed.clear()
            try:
                await self._reassign(token)
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("partitions not assigned yet", group=self.group, reason=error.reason)
            with suppress(TimeoutError):
                new = any(spec.name not in self._counts for spec in self._topics())
                async with asyncio.timeout(NEW_TOPIC_SECONDS if new else LOOK_SECONDS):
                    await self._changed.wait()

    async def _reassign(self, token: int) -> None:
        partitions = await self._partitions()
        group = await self._membership.read()
        if self.member not in group.alive:
            return
        for tp, held in list(self._held.items()):
            if (group.owners.get(tp), group.epochs.get(tp)) != (self.member, held.epoch):
                # Another process runs under the name of this member.
                self._drop(tp)
        assigned = assign(partitions, group.alive, group.owners)
        mine = {tp for tp, member in assigned.items() if member == self.member}
        owned = {tp: group.epochs[tp] for tp, owner in group.owners.items() if owner == self.member}
        if surplus := {tp: e for tp, e in owned.items() if tp not in mine and tp not in self._leaving}:
            self._leave(surplus)
        free = [
            tp
            for tp in sorted(mine - self._held.keys() - self._leaving)
            if tp in owned or group.owners.get(tp) not in group.alive
        ]
        if free:
            for tp, epoch in (await self._membership.claim(token, free)).items():
                self._held[tp] = _Held(epoch)
                self._start(tp, self._held[tp])
            self.stats.assignments += 1
            log.info("partitions claimed", group=self.group, partitions=names(free))

    async def _partitions(self) -> list[TopicPartition]:
        """All partitions of the group. Those of new topics are absent until Kafka has them."""
        specs = {spec.name: spec for spec in self._topics()}
        now = asyncio.get_running_loop().time()
        due = now - self._counted > COUNT_SECONDS
        unknown = [spec for name, spec in specs.items() if due or name not in self._counts]
        if unknown:
            try:
                found = await partition_counts(self._bootstrap, unknown)
                # A broker knows a new topic before its partitions; the next look finds them.
                self._counts.update({name: count for name, count in found.items() if count})
                if due:
                    self._counted = now
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("topics not read yet", group=self.group, error=type(error).__name__)
        return [TopicPartition(name, p) for name in specs for p in range(self._counts.get(name, 0))]

    def _drop(self, tp: TopicPartition) -> None:
        self._held.pop(tp, None)
        self._claims.pop(tp, None)
        self._next.pop(tp, None)
        with suppress(KeyError):
            lag_records.remove(self.group, tp.topic, str(tp.partition))

    def _leave(self, surplus: dict[TopicPartition, int]) -> None:
        for tp in surplus:
            self._drop(tp)
        if self._spawn(self._release(surplus)):
            self._leaving.update(surplus)

    async def _release(self, epochs: dict[TopicPartition, int]) -> None:
        """Finish the work in flight, then free the partitions for their new members."""
        try:
            async with self._processing:
                pass
            for tp in epochs:
                try:
                    async with asyncio.timeout(END_SECONDS):
                        await self._end(tp)
                except (FlywheelError, TimeoutError) as error:
                    # The next member does this work again.
                    log.warning("partition not finished", partition=str(tp), error=type(error).__name__)
            await self._membership.release(epochs)
            log.info("partitions given up", group=self.group, partitions=names(sorted(epochs)))
        except FlywheelError as error:
            # They are still claimed; the next look gives them up again.
            log.warning("partitions not given up yet", group=self.group, reason=error.reason)
        finally:
            self._leaving.difference_update(epochs)

    # Where to begin

    def _start(self, tp: TopicPartition, held: _Held) -> None:
        if held.beginning:
            held.again = True
        else:
            held.beginning = self._spawn(self._find_beginning(tp, held))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run a task beside the reading; False when this member is stopping."""
        if self._tasks is not None:
            with suppress(RuntimeError):  # the group is shutting down
                self._tasks.create_task(work)
                return True
        work.close()
        return False

    async def _find_beginning(self, tp: TopicPartition, held: _Held) -> None:
        """Call `begin` until it answers; whatever it raises, the other partitions are read meanwhile."""
        delay = 0.1
        try:
            while self._held.get(tp) is held:
                held.again = False
                try:
                    async with self._slots, asyncio.timeout(BEGIN_SECONDS):
                        offset = await self._begin(tp)
                except TimeoutError:
                    log.error("partition not begun yet", partition=str(tp), seconds=BEGIN_SECONDS)
                except FlywheelError as error:
                    log.warning("partition not begun yet", partition=str(tp), reason=error.reason)
                except Exception as error:
                    log.error("partition not begun yet", partition=str(tp), exc_info=error)
                else:
                    if held.again:
                        continue
                    if self._held.get(tp) is held:
                        self._next[tp] = offset
                        self._claims[tp] = Claim(tp, offset, held.epoch)
                    return
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)
        finally:
            held.beginning = False

    # Reading

    async def _session(self) -> None:
        """Poll with one Kafka consumer until it fails."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=None,
            client_id=f"{self.group}-{self.member[-12:]}",
            auto_offset_reset="earliest",
            # The broker answers a new assignment's first fetch after the last fetch of the former one.
            fetch_max_wait_ms=250,
            max_partition_fetch_bytes=self._max_record_bytes,
            metadata_max_age_ms=30_000,
            retry_backoff_ms=100,
            request_timeout_ms=15_000,
        )
        try:
            await consumer.start()
            stalls = StallWatch(self.group, consumer)
            while True:
                await self._step(consumer, stalls)
        finally:
            self._reading = {}
            await stop_consumer(consumer, seconds=5)

    async def _step(self, consumer: AIOKafkaConsumer, stalls: StallWatch) -> None:
        """Move the consumer to the claims, poll once and process what came."""
        self._align(consumer, stalls)
        readable = [tp for tp, claim in self._reading.items() if self._claims.get(tp) is claim]
        if not readable:
            await asyncio.sleep(0.05)
            return
        polled = await consumer.getmany(*readable, timeout_ms=100, max_records=self._batch)
        await stalls.look(readable, polled)
        async with self._processing:
            batches = [
                (self._reading[tp], raw)
                for tp, raw in polled.items()
                if raw and self._claims.get(tp) is self._reading[tp]
            ]
            await self._processor.process_all(batches)
            for claim, raw in batches:
                tp = claim.partition
                if self._claims.get(tp) is not claim:
                    continue
                self._next[tp] = raw[-1].offset + 1
                end = consumer.highwater(tp)
                if end is not None:
                    lag = max(0, end - raw[-1].offset - 1)
                    lag_records.labels(self.group, tp.topic, tp.partition).set(lag)

    def _align(self, consumer: AIOKafkaConsumer, stalls: StallWatch) -> None:
        """Assign the partitions to the consumer and seek to where each begins or goes on.

        aiokafka's `assign` forgets all positions and what it has fetched, so it is called for changes of the
        set only. A partition that begins again stays in the set meanwhile. Each gets a position, because
        aiokafka may never find the first offset of a partition whose leader is not there yet.
        """
        assigned = consumer.assignment()
        wanted = self._claims.keys() | (assigned & self._held.keys())
        moved = [tp for tp, claim in self._claims.items() if self._reading.get(tp) is not claim]
        if not moved and wanted == assigned:
            return
        if wanted != assigned:
            consumer.assign(sorted(wanted))
            moved = sorted(wanted)
        stalls.forget({*moved, *(assigned - wanted)})
        for tp in moved:
            if tp in self._next:
                consumer.seek(tp, self._next[tp])
        self._reading = dict(self._claims)
