"""Producers, outbox and consumer loops on the real Kafka and the real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from flywheel_common import errors
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.consumer import ConsumerLoop, PoisonError, Record
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.offsets import Fenced, claim_partitions, move_position, stored_positions
from flywheel_common.kafka.outbox import Relay, enqueue
from flywheel_common.kafka.producer import LossyProducer, Producer
from flywheel_common.kafka.topics import TopicSpec, dead_letter, partition_for
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, connection, create_pool, transaction
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.ports import free_port

pytestmark = pytest.mark.timeout(120)
MOMENT = datetime(2013, 1, 1, tzinfo=UTC)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with create_pool(database, max_size=10) as opened:
        await migrate(opened)
        async with connection(opened) as conn:
            await conn.execute("CREATE TABLE effect (id text, topic text, partition int, at bigserial)")
        yield opened


@pytest.fixture
async def producer(kafka: Any) -> AsyncIterator[Producer]:
    async with Producer(kafka.bootstrap, client_id="test") as opened:
        yield opened


def event(event_id: str, key: str = "k") -> Any:
    return build_event(
        Value(string_value=event_id), source="test", key=key, event_time=MOMENT, event_id=event_id
    )


async def record_effects(conn: Any, records: Sequence[Record]) -> None:
    await conn.executemany(
        "INSERT INTO effect (id, topic, partition) VALUES ($1, $2, $3)",
        [(r.event.id, r.topic, r.partition) for r in records if r.event],
    )


async def effects(pool: Pool) -> list[str]:
    async with connection(pool) as conn:
        return [row["id"] for row in await conn.fetch("SELECT id FROM effect ORDER BY at")]


async def produce(producer: Producer, topic: str, ids: Sequence[str], partitions: int = 4) -> None:
    done, failure = await producer.send_in_order(
        [(topic, event(i).SerializeToString(), i, partition_for(i, partitions)) for i in ids]
    )
    assert (done, failure) == (len(ids), None)


async def read_all(bootstrap: str, topic: str, expected: int) -> list[Any]:
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None
    )
    await consumer.start()
    try:
        found: list[Any] = []
        async with asyncio.timeout(20):
            while len(found) < expected:
                for batch in (await consumer.getmany(timeout_ms=500)).values():
                    found += batch
        return found
    finally:
        await consumer.stop()


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


async def topic_of(kafka: Any, name: str, partitions: int = 4) -> str:
    await ensure_topics(kafka.bootstrap, [TopicSpec(name, partitions)])
    return name


# ------------------------------------------------------------------------------------------------- topics


async def test_topics_are_created_once_and_too_few_partitions_refused(kafka: Any, topic_prefix: str) -> None:
    spec = TopicSpec(topic_prefix + "a", 2)
    await ensure_topics(kafka.bootstrap, [spec])
    await ensure_topics(kafka.bootstrap, [spec, TopicSpec(topic_prefix + "b", 1)])
    with pytest.raises(errors.FailedPrecondition) as caught:
        await ensure_topics(kafka.bootstrap, [TopicSpec(spec.name, 4)])
    assert caught.value.reason == "TOO_FEW_PARTITIONS"


async def test_a_broker_that_is_down_is_unavailable_within_the_timeout() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(errors.Unavailable):
        await ensure_topics(address, [TopicSpec("x")], timeout_seconds=0.5)
    async with Producer(address, client_id="t", timeout_seconds=1) as producer:
        with pytest.raises(errors.Unavailable) as caught:
            await producer.send("x", event("e"))
    assert caught.value.reason == "KAFKA_UNAVAILABLE"


# ------------------------------------------------------------------------------------------------ consumer


async def test_records_are_processed_once_in_order_per_partition(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running
) -> None:
    topic = await topic_of(kafka, topic_prefix + "in")
    ids = [f"e{i:04d}" for i in range(1000)]
    await produce(producer, topic, ids)
    running.begin(
        ConsumerLoop(
            bootstrap=kafka.bootstrap,
            group=topic_prefix + "g",
            topics=[topic],
            handler=record_effects,
            pool=pool,
            batch_records=100,
        )
    )
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
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running
) -> None:
    topic = await topic_of(kafka, topic_prefix + "in")

    def loop() -> ConsumerLoop:
        return ConsumerLoop(
            bootstrap=kafka.bootstrap,
            group=topic_prefix + "g",
            topics=[topic],
            handler=record_effects,
            pool=pool,
        )

    await produce(producer, topic, [f"a{i}" for i in range(100)])
    first = running.begin(loop())
    await eventually(lambda: _len(pool, 100), within=60)
    await running.end(first)
    await produce(producer, topic, [f"b{i}" for i in range(100)])
    running.begin(loop())
    seen = await eventually(lambda: _len(pool, 200), within=60)
    assert len(set(seen)) == len(seen) == 200


async def test_effects_happen_once_across_rebalances_and_crashes(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running
) -> None:
    topic = await topic_of(kafka, topic_prefix + "in")
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
        return ConsumerLoop(
            bootstrap=kafka.bootstrap,
            group=topic_prefix + "g",
            topics=[topic],
            handler=failing,
            pool=pool,
            batch_records=20,
            session_timeout_seconds=6,
        )

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
    from aiokafka import TopicPartition

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


async def test_dedupe_processes_an_event_id_once(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running
) -> None:
    topic = await topic_of(kafka, topic_prefix + "in", 1)
    await produce(producer, topic, ["a", "b", "a"], 1)
    running.begin(
        ConsumerLoop(
            bootstrap=kafka.bootstrap,
            group=topic_prefix + "g",
            topics=[topic],
            handler=record_effects,
            pool=pool,
            dedupe=True,
        )
    )
    await eventually(lambda: _len(pool, 2), within=60)
    await produce(producer, topic, ["b", "c"], 1)
    await eventually(lambda: _len(pool, 3), within=60)
    assert await effects(pool) == ["a", "b", "c"]


async def test_poison_records_go_to_the_dead_letter_topic(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running
) -> None:
    topic, group = await topic_of(kafka, topic_prefix + "in", 1), topic_prefix + "g"
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
    parked = {r.key: r for r in await read_all(kafka.bootstrap, dead_letter(group), 3)}
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
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str, running: Running
) -> None:
    topic = await topic_of(kafka, topic_prefix + "in", 1)
    for _ in range(20):
        await producer.send(topic, b"\xff", partition=0)
    task = running.begin(
        ConsumerLoop(
            bootstrap=kafka.bootstrap,
            group=topic_prefix + "g",
            topics=[topic],
            handler=record_effects,
            pool=pool,
            poison_limit=10,
        )
    )
    with pytest.raises(errors.Internal) as caught:
        await asyncio.wait_for(task, 30)
    assert caught.value.reason == "TOO_MUCH_POISON"


async def test_topics_are_co_assigned_by_partition(
    kafka: Any, pool: Pool, topic_prefix: str, running: Running
) -> None:
    topics = [await topic_of(kafka, topic_prefix + name) for name in ("one", "two")]
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
    await produce(producer, await topic_of(kafka, topic_prefix + "source.a", 1), ["a"], 1)
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
    await produce(producer, await topic_of(kafka, topic_prefix + "source.b", 1), ["b"], 1)
    assert sorted(await eventually(lambda: _len(pool, 2), within=60)) == ["a", "b"]


async def test_a_handler_can_store_its_own_positions(
    kafka: Any, producer: Producer, topic_prefix: str, running: Running
) -> None:
    topic = await topic_of(kafka, topic_prefix + "in", 1)
    await produce(producer, topic, [f"e{i}" for i in range(10)], 1)
    seen: list[int] = []
    start = 4

    async def positions(partitions: Any) -> Any:
        return dict.fromkeys(partitions, start)

    async def handler(conn: Any, records: Sequence[Record]) -> None:
        assert conn is None
        seen.extend(r.offset for r in records)

    loop = ConsumerLoop(
        bootstrap=kafka.bootstrap,
        group=topic_prefix + "g",
        topics=[topic],
        handler=handler,
        positions=positions,
        commit_to_kafka=False,
    )
    running.begin(loop)
    await eventually(lambda: seen == list(range(4, 10)), within=60)
    start = 8
    loop.rewind()  # the store lost data
    await eventually(lambda: seen[6:] == [8, 9], within=60)


async def test_a_consumer_survives_lost_database_connections(
    kafka: Any, pool: Pool, database: str, producer: Producer, topic_prefix: str, running: Running
) -> None:
    topic = await topic_of(kafka, topic_prefix + "in")
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
    kafka: Any, postgres: Any, pool: Pool, topic_prefix: str, running: Running
) -> None:
    topic = await topic_of(kafka, topic_prefix + "in")
    running.begin(
        ConsumerLoop(
            bootstrap=kafka.bootstrap,
            group=topic_prefix + "g",
            topics=[topic],
            handler=record_effects,
            pool=pool,
            dedupe=True,
        )
    )
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


# -------------------------------------------------------------------------------------------------- outbox


async def test_the_outbox_sends_committed_events_in_order_per_key(
    kafka: Any, pool: Pool, producer: Producer, topic_prefix: str
) -> None:
    topic = await topic_of(kafka, topic_prefix + "out", 2)

    async def write(key: str, n: int) -> None:
        async with transaction(pool) as conn:
            # the order of a key is the order in which its transactions commit
            at = await conn.fetchval("INSERT INTO effect (id) VALUES ($1) RETURNING at", key)
            await enqueue(conn, topic, event(f"{key}-{n}-{at}", key))
            if n % 5 == 4:
                raise RuntimeError("rolled back")

    relays = [Relay(pool, producer, poll_seconds=0.2, batch=7, lease_ttl_seconds=2) for _ in range(2)]
    tasks = [asyncio.create_task(relay.run()) for relay in relays]
    for n in range(20):
        await asyncio.gather(*(write(key, n) for key in "abc"), return_exceptions=True)
    records = await read_all(kafka.bootstrap, topic, 48)
    await eventually(lambda: _outbox_empty(pool), within=20)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for key in "abc":
        numbers = [
            int(r.key == key.encode() and _id(r).split("-")[1]) for r in records if r.key == key.encode()
        ]
        assert numbers == [n for n in range(20) if n % 5 != 4]


def _id(record: Any) -> str:
    from flywheel_common.kafka.envelope import parse_event

    return parse_event(record.value).id


async def _outbox_empty(pool: Pool) -> bool:
    async with connection(pool) as conn:
        return bool(await conn.fetchval("SELECT count(*) = 0 FROM outbox WHERE sent_at IS NULL"))


async def test_the_outbox_sends_in_order_after_a_kafka_outage(
    kafka: Any, pool: Pool, topic_prefix: str
) -> None:
    topic = await topic_of(kafka, topic_prefix + "out", 1)
    for n in range(30):
        async with transaction(pool) as conn:
            await enqueue(conn, topic, event(f"e{n}", "k"))
    async with Producer(f"127.0.0.1:{free_port()}", client_id="nowhere", timeout_seconds=1) as nowhere:
        with pytest.raises(errors.Unavailable):
            await Relay(pool, nowhere).send_batch()
    async with Producer(kafka.bootstrap, client_id="relay") as producer:
        assert await Relay(pool, producer).send_batch() == 30
    assert [_id(r) for r in await read_all(kafka.bootstrap, topic, 30)] == [f"e{n}" for n in range(30)]


# ---------------------------------------------------------------------------------------------------- lossy


async def test_the_lossy_producer_drops_records_when_its_queue_is_full(kafka: Any, topic_prefix: str) -> None:
    topic = await topic_of(kafka, topic_prefix + "log", 1)
    async with Producer(kafka.bootstrap, client_id="lossy") as producer:
        lossy = LossyProducer(producer, name="predictions", capacity=10)
        assert [lossy.offer(topic, event(f"e{n}"), partition=0) for n in range(12)] == [True] * 10 + [
            False
        ] * 2
        assert lossy.dropped == 2
        task = asyncio.create_task(lossy.run())
        assert await lossy.flush(20)
        assert lossy.offer(topic, event("later"), partition=0)
        assert await lossy.flush(20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [_id(r) for r in await read_all(kafka.bootstrap, topic, 11)] == [f"e{n}" for n in range(10)] + [
        "later"
    ]


async def test_a_record_that_is_too_large_is_refused(kafka: Any, pool: Pool, topic_prefix: str) -> None:
    topic = await topic_of(kafka, topic_prefix + "in", 1)
    huge = build_event(Value(bytes_value=b"x" * 9_000_000), source="test", key="k", event_time=MOMENT)
    large = build_event(
        Value(bytes_value=b"x" * 3_000_000), source="test", key="k", event_time=MOMENT, event_id="large"
    )
    async with Producer(kafka.bootstrap, client_id="large") as producer:
        with pytest.raises(errors.InvalidArgument) as caught:
            await producer.send(topic, huge)
        assert caught.value.reason == "EVENT_TOO_LARGE"
        lossy = LossyProducer(producer, name="large")
        for one in (event("a"), huge, large, event("b")):
            lossy.offer(topic, one, partition=0)
        task = asyncio.create_task(lossy.run())
        assert await lossy.flush(20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (lossy.sent, lossy.dropped) == (3, 1)
    assert [_id(r) for r in await read_all(kafka.bootstrap, topic, 3)] == ["a", "large", "b"]
    with pytest.raises(errors.InvalidArgument):
        async with transaction(pool) as conn:
            await enqueue(conn, topic, huge)


async def test_a_producer_works_after_many_concurrent_failures(kafka: Any, topic_prefix: str) -> None:
    topic = await topic_of(kafka, topic_prefix + "in", 1)
    async with Producer(kafka.bootstrap, client_id="many", timeout_seconds=3) as producer:
        await producer.send(topic, event("first"), partition=0)
        missing = [producer.send(topic_prefix + "no-such-topic", event("x"), partition=0) for _ in range(20)]
        outcomes = await asyncio.gather(*missing, return_exceptions=True)
        assert all(isinstance(o, errors.Unavailable) for o in outcomes)
        await asyncio.gather(*(producer.send(topic, event(f"e{n}"), partition=0) for n in range(20)))
