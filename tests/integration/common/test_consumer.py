"""Consumer loops on the real Kafka and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from aiokafka import TopicPartition

from flywheel_common import errors
from flywheel_common.kafka.consumer import ConsumerLoop
from flywheel_common.kafka.offsets import Fenced, claim_partitions, move_position, stored_positions
from flywheel_common.kafka.poison import PoisonError
from flywheel_common.kafka.producer import Producer
from flywheel_common.kafka.record import Record
from flywheel_common.kafka.topics import dead_letter, partition_for
from flywheel_common.postgres.pool import Pool, connection, create_pool, transaction
from tests.support.builders.events import create_topic, event, produce, read_records
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy

pytestmark = pytest.mark.timeout(120)


async def record_effects(conn: Any, records: Sequence[Record]) -> None:
    await conn.executemany(
        "INSERT INTO effect (id, topic, partition) VALUES ($1, $2, $3)",
        [(r.event.id, r.topic, r.partition) for r in records if r.event],
    )


async def effects(pool: Pool) -> list[str]:
    async with connection(pool) as conn:
        return [row["id"] for row in await conn.fetch("SELECT id FROM effect ORDER BY at")]


class Running:
    """Consumer loops as background tasks that end with the test."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def begin(self, loop: ConsumerLoop) -> asyncio.Task[None]:
        task = asyncio.create_task(loop.run())
        self.tasks.append(task)
        return task

    async def end(self, *tasks: asyncio.Task[None]) -> None:
        for task in tasks or self.tasks:
            task.cancel()
        await asyncio.gather(*(tasks or self.tasks), return_exceptions=True)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    started = Running()
    yield started
    await started.end()


@pytest.fixture
def consumer(kafka: Any, pool: Pool, topic_prefix: str) -> Callable[..., ConsumerLoop]:
    """Makes consumers of one group that write effects; options override the defaults."""

    def make(topic: str, **options: Any) -> ConsumerLoop:
        defaults = {"handler": record_effects, "pool": pool, "topics": [topic], "group": topic_prefix + "g"}
        return ConsumerLoop(bootstrap=kafka.bootstrap, **{**defaults, **options})

    return make


async def test_records_are_processed_once_in_order_per_partition(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running, consumer: Any
) -> None:
    topic = await create_topic(kafka, topic_prefix + "in")
    ids = [f"e{i:04d}" for i in range(1000)]
    await produce(producer, topic, ids)
    running.begin(consumer(topic, batch_records=100))
    seen = await eventually(lambda: _len(pool, 1000), within=60)
    assert Counter(seen) == Counter(ids)
    for p in range(4):
        assert [i for i in seen if partition_for(i, 4) == p] == [i for i in ids if partition_for(i, 4) == p]
    assert sum((await stored_positions(pool, topic_prefix + "g")).values()) == 1000


async def _len(pool: Pool, n: int) -> list[str]:
    seen = await effects(pool)
    assert len(seen) >= n, f"{len(seen)} of {n}"
    return seen


async def test_a_new_member_continues_at_the_stored_position(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running, consumer: Any
) -> None:
    topic = await create_topic(kafka, topic_prefix + "in")

    def loop() -> ConsumerLoop:
        return consumer(topic)

    await produce(producer, topic, [f"a{i}" for i in range(100)])
    first = running.begin(loop())
    await eventually(lambda: _len(pool, 100), within=60)
    await running.end(first)
    await produce(producer, topic, [f"b{i}" for i in range(100)])
    running.begin(loop())
    seen = await eventually(lambda: _len(pool, 200), within=60)
    assert len(set(seen)) == len(seen) == 200


async def test_effects_happen_once_across_rebalances_and_crashes(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running, consumer: Any
) -> None:
    topic = await create_topic(kafka, topic_prefix + "in")
    total = 3000
    calls = 0

    async def failing(conn: Any, records: Sequence[Record]) -> None:
        nonlocal calls
        calls += 1
        await record_effects(conn, records)
        await asyncio.sleep(0.01)
        if calls % 7 == 0:
            raise errors.Unavailable("a peer is down")  # after the effect, which must be rolled back

    def member() -> ConsumerLoop:
        return consumer(topic, handler=failing, batch_records=20, session_timeout_seconds=6)

    await produce(producer, topic, [f"e{i}" for i in range(total)])
    tasks = [running.begin(member())]
    await eventually(lambda: _len(pool, 100), within=60)
    tasks.append(running.begin(member()))
    await eventually(lambda: _len(pool, 700), within=60)
    tasks[0].cancel()  # in the middle of a batch
    tasks.append(running.begin(member()))
    await eventually(lambda: _len(pool, 1500), within=60)
    tasks[1].cancel()
    seen = await eventually(lambda: _len(pool, total), within=60)
    assert Counter(seen) == Counter(f"e{i}" for i in range(total))


async def test_a_member_with_an_old_claim_cannot_commit(pool: Pool) -> None:
    tp = TopicPartition("t", 0)
    old = (await claim_partitions(pool, "g", "old", [tp]))[tp]
    new = (await claim_partitions(pool, "g", "new", [tp]))[tp]
    assert (old.epoch, new.epoch, new.next_offset) == (1, 2, None)
    with pytest.raises(Fenced):
        async with transaction(pool) as conn:
            await conn.execute("INSERT INTO effect VALUES ('late', 't', 0)")
            await move_position(conn, "g", old, 10)
    async with transaction(pool) as conn:
        await move_position(conn, "g", new, 5)
    assert await effects(pool) == []
    assert await stored_positions(pool, "g") == {tp: 5}


async def test_a_repeated_commit_is_fenced(pool: Pool) -> None:
    """The connection may break after a commit and before its acknowledgement; the batch is then retried."""
    tp = TopicPartition("t", 0)
    claim = (await claim_partitions(pool, "g", "member", [tp]))[tp]
    async with transaction(pool) as conn:
        await move_position(conn, "g", claim, 10)
    with pytest.raises(Fenced):
        async with transaction(pool) as conn:
            await conn.execute("INSERT INTO effect VALUES ('twice', 't', 0)")
            await move_position(conn, "g", claim, 10)
    assert await effects(pool) == []


async def test_dedupe_processes_an_event_id_once(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running, consumer: Any
) -> None:
    topic = await create_topic(kafka, topic_prefix + "in", 1)
    await produce(producer, topic, ["a", "b", "a"], 1)
    running.begin(consumer(topic, dedupe=True))
    await eventually(lambda: _len(pool, 2), within=60)
    await produce(producer, topic, ["b", "c"], 1)
    await eventually(lambda: _len(pool, 3), within=60)
    assert await effects(pool) == ["a", "b", "c"]


async def test_poison_records_go_to_the_dead_letter_topic(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running
) -> None:
    topic, group = await create_topic(kafka, topic_prefix + "in", 1), topic_prefix + "g"
    good = [f"e{i}" for i in range(60)]
    for i in good[:30]:
        await producer.send(topic, event(i), key=i, partition=0)
    await producer.send(
        topic, b"\xff\xff not an event", key="broken", partition=0, headers=[("origin", b"here")]
    )
    await producer.send(topic, event("poison"), key="poison", partition=0)
    await producer.send(topic, event("bug"), key="bug", partition=0)
    for i in good[30:]:
        await producer.send(topic, event(i), key=i, partition=0)

    async def handler(conn: Any, records: Sequence[Record]) -> None:
        await record_effects(conn, records)
        for record in records:
            assert record.event is not None
            if record.event.id == "poison":
                raise PoisonError("unknown model", [record])
            if record.event.id == "bug":
                raise KeyError("hunter2")

    loop = ConsumerLoop(bootstrap=kafka.bootstrap, group=group, topics=[topic], handler=handler, pool=pool)
    running.begin(loop)
    await eventually(lambda: _len(pool, 60), within=60)
    assert await effects(pool) == good
    parked = {r.key: r for r in await read_records(kafka.bootstrap, dead_letter(group), 3)}
    assert set(parked) == {b"broken", b"poison", b"bug"}
    broken = dict(parked[b"broken"].headers)
    assert parked[b"broken"].value == b"\xff\xff not an event"
    assert (
        broken["origin"],
        broken["x-original-topic"],
        broken["x-original-partition"],
        broken["x-original-offset"],
    ) == (
        b"here",
        topic.encode(),
        b"0",
        b"30",
    )
    assert dict(parked[b"poison"].headers)["x-error"] == b"unknown model"
    assert b"hunter2" not in dict(parked[b"bug"].headers)["x-error"]
    assert loop.stats.poison == 3


async def test_too_many_poison_records_stop_the_consumer(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running, consumer: Any
) -> None:
    topic = await create_topic(kafka, topic_prefix + "in", 1)
    for _ in range(20):
        await producer.send(topic, b"\xff", partition=0)
    task = running.begin(consumer(topic, poison_limit=10))
    with pytest.raises(errors.Internal) as caught:
        await asyncio.wait_for(task, 30)
    assert caught.value.reason == "TOO_MUCH_POISON"


async def test_poison_among_good_records_of_a_large_poll_stops_nothing(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running, consumer: Any
) -> None:
    topic = await create_topic(kafka, topic_prefix + "in", 1)
    ids = [f"{'bad' if i % 3 == 1 else 'good'}-{i:04d}" for i in range(600)]
    await asyncio.gather(*(producer.send(topic, event(i), partition=0) for i in ids))

    async def handler(conn: Any, records: Sequence[Record]) -> None:
        bad = [r for r in records if r.event is not None and r.event.id.startswith("bad")]
        if bad:
            raise PoisonError("bad", bad)
        await record_effects(conn, records)

    loop = consumer(topic, handler=handler, poison_limit=150, batch_records=1000)
    task = running.begin(loop)

    async def all_processed() -> bool:
        assert not task.done(), "too much poison"
        assert 400 == len(await effects(pool))
        return True

    await eventually(all_processed, within=60)
    assert 200 == loop.stats.poison


async def test_topics_are_co_assigned_by_partition(
    kafka: Any, pool: Pool, topic_prefix: str, running: Running
) -> None:
    topics = [await create_topic(kafka, topic_prefix + name) for name in ("one", "two")]
    loops = [
        ConsumerLoop(
            bootstrap=kafka.bootstrap,
            group=topic_prefix + "g",
            topics=topics,
            handler=record_effects,
            pool=pool,
        )
        for _ in range(2)
    ]
    for loop in loops:
        running.begin(loop)
    await eventually(lambda: sorted(len(loop.assigned) for loop in loops) == [4, 4], within=60)
    for loop in loops:
        by_topic = {t: {tp.partition for tp in loop.assigned if tp.topic == t} for t in topics}
        assert by_topic[topics[0]] == by_topic[topics[1]]


async def test_topics_that_appear_later_match_a_pattern(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running
) -> None:
    await produce(producer, await create_topic(kafka, topic_prefix + "source.a", 1), ["a"], 1)
    running.begin(
        ConsumerLoop(
            bootstrap=kafka.bootstrap,
            group=topic_prefix + "g",
            pattern=f"^{topic_prefix.replace('.', '[.]')}source[.].*",
            handler=record_effects,
            pool=pool,
        )
    )
    await eventually(lambda: _len(pool, 1), within=60)
    await produce(producer, await create_topic(kafka, topic_prefix + "source.b", 1), ["b"], 1)
    assert sorted(await eventually(lambda: _len(pool, 2), within=60)) == ["a", "b"]


async def test_a_consumer_survives_lost_database_connections(
    kafka: Any, pool: Pool, database: str, producer: Producer, topic_prefix: str, running: Running
) -> None:
    topic = await create_topic(kafka, topic_prefix + "in")
    port = int(database.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    async with (
        FaultProxy("127.0.0.1", port) as proxy,
        create_pool(database.replace(f":{port}/", f":{proxy.port}/")) as through,
    ):
        running.begin(
            ConsumerLoop(
                bootstrap=kafka.bootstrap,
                group=topic_prefix + "g",
                topics=[topic],
                handler=record_effects,
                pool=through,
                batch_records=50,
            )
        )
        await produce(producer, topic, [f"a{i}" for i in range(500)])
        await eventually(lambda: _len(pool, 100), within=60)
        proxy.cut()
        await produce(producer, topic, [f"b{i}" for i in range(500)])
        await asyncio.sleep(1)
        proxy.heal()
        seen = await eventually(lambda: _len(pool, 1000), within=60)
        await running.end()
    assert len(set(seen)) == len(seen) == 1000


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_killing_kafka_and_postgres_keeps_effects_exactly_once(
    kafka: Any, postgres: Any, pool: Pool, topic_prefix: str, running: Running, consumer: Any
) -> None:
    topic = await create_topic(kafka, topic_prefix + "in")
    running.begin(consumer(topic, dedupe=True))
    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def load() -> None:
        async with Producer(kafka.bootstrap, client_id="load", timeout_seconds=5) as producer:
            n = 0
            while not stop.is_set():
                n += 1
                try:
                    await producer.send(topic, event(f"e{n}"), key=f"e{n}", partition=n % 4)
                    acknowledged.append(f"e{n}")
                except errors.Unavailable:
                    await asyncio.sleep(0.1)

    loader = asyncio.create_task(load())
    await eventually(lambda: _len(pool, 200), within=60)
    await asyncio.to_thread(kafka.kill)
    await asyncio.to_thread(kafka.restart)
    before = len(acknowledged)
    await eventually(lambda: len(acknowledged) > before + 200, within=60)
    await asyncio.to_thread(postgres.kill)
    await asyncio.to_thread(postgres.restart)
    before = len(acknowledged)
    await eventually(lambda: len(acknowledged) > before + 200, within=60)
    stop.set()
    await loader
    await eventually(lambda: _all_in(pool, acknowledged), within=60)
    seen = await effects(pool)
    assert len(set(seen)) == len(seen)


async def _all_in(pool: Pool, ids: list[str]) -> bool:
    missing = set(ids) - set(await effects(pool))
    assert not missing, f"{len(missing)} missing"
    return True
