"""Consumers that share partitions by claims, on the real Kafka and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import Fetcher

from flywheel_common.kafka import claimed_consumer, stalls
from flywheel_common.kafka.claimed_consumer import ClaimedConsumer, TopicPartition
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.record import Record
from flywheel_common.kafka.topics import TopicSpec
from flywheel_common.postgres.pool import Pool, create_pool
from tests.support.builders.events import event, produce
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(120)
SESSION_SECONDS = 3.0


class Member:
    """A consumer that keeps what happened to it."""

    def __init__(
        self, consumer: Callable[..., ClaimedConsumer], topics: list[TopicSpec], **options: Any
    ) -> None:
        self.events: list[tuple[str, TopicPartition]] = []
        self.seen: list[str] = []
        self.broken: set[TopicPartition] = set()
        self.hanging: set[TopicPartition] = set()
        self.hold: asyncio.Event | None = None
        self.consumer = consumer(
            topics=lambda: topics, begin=self._begin, end=self._end, handler=self._handle, **options
        )
        self.task = asyncio.create_task(self.consumer.run())

    @property
    def assigned(self) -> list[TopicPartition]:
        return self.consumer.assigned

    async def _begin(self, partition: TopicPartition) -> int:
        if partition in self.broken:
            raise KeyError(partition)
        self.events.append(("begin", partition))
        if partition in self.hanging:
            await asyncio.Event().wait()
        return 0

    async def _end(self, partition: TopicPartition) -> None:
        self.events.append(("end", partition))

    async def _handle(self, _: Any, records: Sequence[Record]) -> None:
        if self.hold is not None:
            await self.hold.wait()
        self.seen += [r.event.id for r in records if r.event]
        self.events.append(("handled", TopicPartition(records[0].topic, records[0].partition)))

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def member(kafka: Any, pool: Pool, topic_prefix: str) -> AsyncIterator[Callable[..., Member]]:
    """Starts members of one group; they end with the test."""
    started: list[Member] = []

    def start(topics: list[TopicSpec], **options: Any) -> Member:
        def consumer(**more: Any) -> ClaimedConsumer:
            defaults = {"pool": pool, "session_timeout_seconds": SESSION_SECONDS}
            return ClaimedConsumer(
                bootstrap=kafka.bootstrap, group=topic_prefix + "g", **{**defaults, **options, **more}
            )

        started.append(Member(consumer, topics))
        return started[-1]

    yield start
    await asyncio.gather(*(m.stop() for m in started))


def shares(*members: Member) -> list[int]:
    return [len(m.assigned) for m in members]


async def test_members_share_partitions_and_take_those_of_one_that_left(
    member: Callable[..., Member], producer: Producer, topic_prefix: str
) -> None:
    topics = [TopicSpec(topic_prefix + "in", 4)]
    one = member(topics)
    await eventually(lambda: shares(one) == [4], within=30)
    two = member(topics)
    await eventually(lambda: shares(one, two) == [2, 2], within=30)
    assert not set(one.assigned) & set(two.assigned)
    ids = [f"e{i}" for i in range(100)]
    await produce(producer, topics[0].name, ids)
    await eventually(lambda: sorted(one.seen + two.seen) == sorted(ids), within=30)
    await one.stop()
    await eventually(lambda: shares(two) == [4], within=30)


async def test_a_new_topic_moves_no_partition_and_is_read_at_once(
    member: Callable[..., Member], producer: Producer, topic_prefix: str
) -> None:
    topics = [TopicSpec(topic_prefix + "in", 4)]
    members = [member(topics), member(topics)]
    await eventually(lambda: shares(*members) == [2, 2], within=30)
    before = [m.assigned for m in members]
    for m in members:
        m.events.clear()
    topics.append(TopicSpec(topic_prefix + "new", 2))
    for m in members:
        m.consumer.topics_changed()
    await eventually(lambda: shares(*members) == [3, 3], within=30)
    await produce(producer, topics[1].name, ["a", "b", "c"], 2)
    await eventually(lambda: sorted(s for m in members for s in m.seen) == ["a", "b", "c"], within=30)
    assert before == [[tp for tp in m.assigned if tp.topic == topics[0].name] for m in members]
    assert {topics[1].name} == {tp.topic for m in members for _, tp in m.events}
    del topics[1]
    for m in members:
        m.consumer.topics_changed()
    await eventually(lambda: [m.assigned for m in members] == before, within=30)


async def test_a_partition_is_given_up_after_its_work_in_flight(
    member: Callable[..., Member], producer: Producer, topic_prefix: str
) -> None:
    topics = [TopicSpec(topic_prefix + "in", 2)]
    one = member(topics)
    await eventually(lambda: shares(one) == [2], within=30)
    one.hold = asyncio.Event()
    for partition in range(2):
        await producer.send(topics[0].name, event(f"p{partition}"), key="k", partition=partition)
    two = member(topics)
    await eventually(lambda: shares(one) == [1], within=30)
    await asyncio.sleep(1.5)
    assert shares(two) == [0], "the partition is claimed while its work is in flight"
    one.hold.set()
    await eventually(lambda: shares(one, two) == [1, 1], within=30)
    (moved,) = two.assigned
    assert ("end", moved) in one.events
    assert ("handled", moved) not in one.events[one.events.index(("end", moved)) :]


async def test_partitions_of_a_dead_member_are_free_when_its_lease_has_ended(
    member: Callable[..., Member], database: str, topic_prefix: str
) -> None:
    topics = [TopicSpec(topic_prefix + "in", 4)]
    async with create_pool(database) as own:
        dead = member(topics, pool=own)
        await eventually(lambda: shares(dead) == [4], within=30)
        heir = member(topics)
        await eventually(lambda: shares(dead, heir) == [2, 2], within=30)
        own.terminate()
        await dead.stop()
        await eventually(lambda: shares(heir) == [4], within=3 * SESSION_SECONDS + 5)


async def test_a_member_that_starts_again_under_its_name_does_not_wait(
    member: Callable[..., Member], database: str, topic_prefix: str
) -> None:
    topics = [TopicSpec(topic_prefix + "in", 4)]
    options = {"member": "pod-0", "session_timeout_seconds": 100.0}
    async with create_pool(database) as own:
        dead = member(topics, pool=own, **options)
        await eventually(lambda: shares(dead) == [4], within=30)
        own.terminate()
        await dead.stop()
        again = member(topics, **options)
        await eventually(lambda: shares(again) == [4], within=30)


async def test_a_partition_that_cannot_begin_stops_no_other(
    member: Callable[..., Member], producer: Producer, topic_prefix: str
) -> None:
    topics = [TopicSpec(topic_prefix + "in", 2)]
    bad, good = (TopicPartition(topics[0].name, p) for p in range(2))
    one = member(topics)
    one.broken.add(bad)
    await eventually(lambda: one.assigned == [good], within=30)
    for partition in range(2):
        await producer.send(topics[0].name, event(f"p{partition}"), key="k", partition=partition)
    await eventually(lambda: one.seen == ["p1"], within=30)
    one.broken.clear()
    await eventually(lambda: one.seen == ["p1", "p0"], within=30)
    one.consumer.restart([good])
    await eventually(lambda: one.seen == ["p1", "p0", "p1"], within=30)


async def test_a_begin_that_hangs_is_called_again_and_stops_no_other(
    member: Callable[..., Member], producer: Producer, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claimed_consumer, "BEGIN_SECONDS", 1.0)
    topics = [TopicSpec(topic_prefix + "in", 2)]
    bad, good = (TopicPartition(topics[0].name, p) for p in range(2))
    one = member(topics)
    one.hanging.add(bad)
    await eventually(lambda: one.assigned == [good], within=30)
    for partition in range(2):
        await producer.send(topics[0].name, event(f"p{partition}"), key="k", partition=partition)
    await eventually(lambda: one.seen == ["p1"], within=30)
    await eventually(lambda: one.events.count(("begin", bad)) >= 3, within=30)
    one.hanging.clear()
    await eventually(lambda: one.seen == ["p1", "p0"], within=30)


def never_fetch(monkeypatch: pytest.MonkeyPatch, stuck: TopicPartition) -> None:
    """In the first fetcher that reads `stuck`, a fetch of this partition seems to be in flight for ever."""
    found: list[Fetcher] = []
    node_of = Fetcher._select_read_replica

    def select(self: Fetcher, partition: TopicPartition) -> Any:
        if partition != stuck or self is not (found or [self])[0]:
            return node_of(self, partition)
        found[:] = [self]
        self._in_flight.add("a node that never answers")
        return "a node that never answers"

    monkeypatch.setattr(Fetcher, "_select_read_replica", select)


def never_learn(monkeypatch: pytest.MonkeyPatch, stuck: TopicPartition) -> None:
    """The first consumer's client that asks for the metadata of the topic does not get it."""
    found: list[AIOKafkaClient] = []
    update_of = AIOKafkaClient._metadata_update

    async def update(self: AIOKafkaClient, cluster: Any, topics: Any) -> Any:
        consumes = self._client_id.startswith(stuck.topic.removesuffix("new"))
        if not consumes or stuck.topic not in topics or self is not (found or [self])[0]:
            return await update_of(self, cluster, topics)
        found[:] = [self]
        await asyncio.sleep(0.05)
        return await update_of(self, cluster, [t for t in topics if t != stuck.topic] or ["none"])

    monkeypatch.setattr(AIOKafkaClient, "_metadata_update", update)


@pytest.mark.parametrize("fault", [never_fetch, never_learn])
async def test_a_partition_that_kafka_client_never_fetches_is_read_after_a_reconnect(
    fault: Callable[[pytest.MonkeyPatch, TopicPartition], None],
    member: Callable[..., Member],
    producer: Producer,
    topic_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stalls, "STALL_SECONDS", 2.0)
    topics = [TopicSpec(topic_prefix + "in", 2)]
    one = member(topics)
    await eventually(lambda: len(one.assigned) == 2, within=30)
    await producer.send(topics[0].name, event("before"), key="k", partition=0)
    await eventually(lambda: one.seen == ["before"], within=30)
    fault(monkeypatch, TopicPartition(topic_prefix + "new", 0))
    topics.append(TopicSpec(topic_prefix + "new", 1))
    one.consumer.topics_changed()
    await eventually(lambda: len(one.assigned) == 3, within=30)
    await producer.send(topics[1].name, event("stuck"), key="k", partition=0)
    await producer.send(topics[0].name, event("other"), key="k", partition=1)
    await eventually(lambda: "other" in one.seen, within=30)
    await eventually(lambda: sorted(one.seen) == ["before", "other", "stuck"], within=30)
