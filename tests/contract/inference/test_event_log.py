"""Contract tests of the prediction log and the outcomes, in memory and in Kafka."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from flywheel_common.errors import Unavailable
from flywheel_common.kafka import topics
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.envelope import parse_event, payload_of
from flywheel_common.kafka.producer import Producer
from flywheel_inference.fakes.event_log import MemoryOutcomes, MemoryPredictionLog
from flywheel_inference.outcomes.ports import OutcomeSink
from flywheel_inference.outcomes.row import OutcomeRow
from flywheel_inference.prediction_log.buffer import PredictionLog
from flywheel_inference.prediction_log.ports import LogSink
from flywheel_inference.prediction_log.rows import LogRows
from flywheel_inference.store.kafka.event_log import KafkaOutcomes, KafkaPredictionLog
from flywheel_protos.events.v1.prediction_pb2 import OutcomeBatch, PredictionBatch
from tests.support.builders.inference import numbered_log_rows
from tests.support.peers.inference import NO_SERVER

PARTITIONS = 4
MODEL = "projects/p/models/late"
MIB = 1 << 20


class Tail:
    """Reads the records that a topic gets after `start`."""

    def __init__(self, consumer: AIOKafkaConsumer, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic

    async def start(self) -> None:
        await self._consumer.start()
        self._consumer.assign([TopicPartition(self._topic, p) for p in range(PARTITIONS)])
        await self._consumer.seek_to_end()
        for partition in range(PARTITIONS):
            await self._consumer.position(TopicPartition(self._topic, partition))

    async def stop(self) -> None:
        await self._consumer.stop()

    async def read(self) -> list[tuple[int, bytes]]:
        """(partition, value), in the order of each partition."""
        found: list[tuple[int, bytes]] = []
        while batch := await self._consumer.getmany(timeout_ms=1000):
            found += [(p.partition, record.value) for p, records in batch.items() for record in records]
        return found


@pytest.fixture(params=["memory", "kafka"])
def bootstrap(request: pytest.FixtureRequest) -> str:
    """Kafka's bootstrap address; empty for the in-memory adapters."""
    return str(request.getfixturevalue("kafka").bootstrap) if request.param == "kafka" else ""


@pytest.fixture
async def producer(bootstrap: str) -> AsyncIterator[Producer]:
    made = Producer(bootstrap or NO_SERVER, client_id="tests", timeout_seconds=20.0)
    yield made
    await made.close()


async def tail_of(bootstrap: str, topic: str) -> Tail:
    await ensure_topics(bootstrap, topics.specs([topic], PARTITIONS))
    tail = Tail(AIOKafkaConsumer(bootstrap_servers=bootstrap, max_partition_fetch_bytes=32 * MIB), topic)
    await tail.start()
    return tail


# --- predictions


@dataclass
class Log:
    sink: LogSink
    stored: Callable[[], Awaitable[list[tuple[int, PredictionBatch]]]]
    """The batches stored since the test began: (partition, batch), in the order of each partition."""

    async def publish(self, rows: Sequence[LogRows]) -> tuple[int, int]:
        """Number of records encoded, and of records stored."""
        records = self.sink.encode(rows)
        return len(records), await self.sink.publish(records)


@pytest.fixture
async def log(bootstrap: str, producer: Producer) -> AsyncIterator[Log]:
    if not bootstrap:
        memory = MemoryPredictionLog(PARTITIONS)

        async def stored_batches() -> list[tuple[int, PredictionBatch]]:
            return [(r.partition, payload_of(parse_event(r.value), PredictionBatch)) for r in memory.stored]

        yield Log(memory, stored_batches)
        return
    tail = await tail_of(bootstrap, topics.PREDICTION_LOGGED)

    async def read() -> list[tuple[int, PredictionBatch]]:
        return [(p, payload_of(parse_event(value), PredictionBatch)) for p, value in await tail.read()]

    yield Log(KafkaPredictionLog(producer, PARTITIONS), read)
    await tail.stop()


def numbered(batches: Sequence[tuple[int, PredictionBatch]]) -> dict[int, list[int]]:
    """Partition → the numbers of its predictions, in order. Asserts that each id belongs to its partition."""
    found: dict[int, list[int]] = {}
    for partition, batch in batches:
        for prediction in batch.prediction_ids:
            assert partition == topics.partition_for(prediction, PARTITIONS)
            found.setdefault(partition, []).append(int(prediction.removeprefix("id-")))
    return found


def expected(numbers: Sequence[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for number in numbers:
        found.setdefault(topics.partition_for(f"id-{number}", PARTITIONS), []).append(number)
    return found


async def test_rows_are_stored_once_in_order_in_the_partition_of_their_id(log: Log) -> None:
    made, stored = await log.publish([numbered_log_rows(range(40)), numbered_log_rows(range(40, 80))])
    assert (PARTITIONS, PARTITIONS) == (made, stored)
    await log.publish([numbered_log_rows(range(80, 100))])
    batches = await log.stored()
    assert expected(range(100)) == numbered(batches)
    for _, batch in batches:
        numbers = [int(p.removeprefix("id-")) for p in batch.prediction_ids]
        assert [n / 100 for n in numbers] == np.frombuffer(batch.scores, "<f8").tolist()
        assert numbers == np.frombuffer(batch.event_times, "<i8").tolist()


async def test_equal_prediction_ids_are_stored_each_time(log: Log) -> None:
    for _ in range(2):
        await log.publish([numbered_log_rows([7, 7]), numbered_log_rows([7])])
    assert [7] * 6 == [number for numbers in numbered(await log.stored()).values() for number in numbers]


async def test_publishing_no_records_stores_nothing(log: Log) -> None:
    assert 0 == await log.sink.publish([])
    assert [] == await log.stored()


async def test_large_batches_are_split_and_an_oversized_row_is_left_out(
    log: Log,
) -> None:
    same = [n for n in range(100) if topics.partition_for(f"id-{n}", PARTITIONS) == 0][:7]
    subjects = dict.fromkeys(same[:5], "x" * (3 * MIB)) | {same[5]: "x" * (9 * MIB)}
    made, stored = await log.publish([numbered_log_rows(same, subjects=subjects)])
    # Two of 3 MiB fit into 8 MiB, three do not.
    assert made == stored >= 3
    batches = await log.stored()
    assert {0: [*same[:5], same[6]]} == numbered(batches)
    assert made == len(batches)


async def test_an_oversized_row_is_counted_as_dropped_and_others_are_stored(log: Log) -> None:
    logged = PredictionLog(log.sink)
    logged.offer(numbered_log_rows([1], subjects={1: "x" * (9 * MIB)}))
    logged.offer(numbered_log_rows([2, 3]))
    assert await logged.flush()
    assert (2, 1, 0) == (logged.logged_count, logged.dropped_count, logged.held)
    assert [2, 3] == sorted(number for numbers in numbered(await log.stored()).values() for number in numbers)


async def test_an_unavailable_log_stores_nothing_and_does_not_raise() -> None:
    memory = MemoryPredictionLog()
    memory.down = True
    async with Producer(NO_SERVER, client_id="tests", timeout_seconds=0.5) as producer:
        for sink in (memory, KafkaPredictionLog(producer, PARTITIONS)):
            assert 0 == await sink.publish(sink.encode([numbered_log_rows([1, 2])]))
    memory.down = False
    records = memory.encode([numbered_log_rows([1, 2])])
    assert len(records) == await memory.publish(records)
    assert records == memory.stored


# --- outcomes


@dataclass
class Outcomes:
    sink: OutcomeSink
    stored: Callable[[], Awaitable[list[tuple[str, OutcomeRow]]]]
    """The rows stored since the test began: (model, row), rows of one prediction in their order."""


@pytest.fixture
async def outcomes(bootstrap: str, producer: Producer) -> AsyncIterator[Outcomes]:
    if not bootstrap:
        memory = MemoryOutcomes()

        async def stored_rows() -> list[tuple[str, OutcomeRow]]:
            return list(memory.stored)

        yield Outcomes(memory, stored_rows)
        return
    tail = await tail_of(bootstrap, topics.OUTCOME_RECORDED)

    async def read() -> list[tuple[str, OutcomeRow]]:
        return [row for partition, value in await tail.read() for row in outcome_rows(partition, value)]

    yield Outcomes(KafkaOutcomes(producer, PARTITIONS), read)
    await tail.stop()


def outcome_rows(partition: int, value: bytes) -> list[tuple[str, OutcomeRow]]:
    batch = payload_of(parse_event(value), OutcomeBatch)
    assert {partition} == {topics.partition_for(p, PARTITIONS) for p in batch.prediction_ids}
    values = np.frombuffer(batch.values, "<f8").tolist()
    times = np.frombuffer(batch.event_times, "<i8").tolist()
    classes = batch.class_names or [""] * len(values)
    columns = zip(batch.prediction_ids, values, times, batch.outcome_ids, classes, strict=True)
    return [(batch.model, OutcomeRow(p, batch.name, v, at, o, c)) for p, v, at, o, c in columns]


def by_prediction(stored: Sequence[tuple[str, OutcomeRow]]) -> dict[str, list[tuple[str, OutcomeRow]]]:
    found: dict[str, list[tuple[str, OutcomeRow]]] = {}
    for model, row in stored:
        found.setdefault(row.prediction_id, []).append((model, row))
    return found


async def test_all_outcomes_are_stored_in_order_by_prediction(outcomes: Outcomes) -> None:
    own = uuid4().hex
    rows = [OutcomeRow(f"{own}-{i % 25}", "label", i / 7, 1_000_000 * i, f"{own}:{i}") for i in range(100)]
    await outcomes.sink.record(MODEL, rows[:50])
    await outcomes.sink.record(MODEL, rows[50:])
    assert by_prediction([(MODEL, row) for row in rows]) == by_prediction(await outcomes.stored())


async def test_outcomes_of_several_names_and_models_are_separate(outcomes: Outcomes) -> None:
    own = uuid4().hex
    rows = [
        (model, OutcomeRow(own, name, value, -5, f"{own}:{model}:{name}"))
        for model, name, value in (
            (MODEL, "label", 1.0),
            (MODEL, "revenue", 9.5),
            (f"{MODEL}2", "label", 0.0),
        )
    ]
    await outcomes.sink.record(MODEL, [row for model, row in rows if model == MODEL])
    await outcomes.sink.record(f"{MODEL}2", [rows[2][1]])
    assert sorted(rows, key=repr) == sorted(await outcomes.stored(), key=repr)


async def test_labels_with_and_without_a_class_keep_their_form(outcomes: Outcomes) -> None:
    own = uuid4().hex
    rows = [
        OutcomeRow(own, "label", 0.5 if not name else math.nan, i, f"{own}:{i}", name)
        for i, name in enumerate(["late", "", "on time", ""])
    ]
    await outcomes.sink.record(MODEL, rows)
    stored = [row for _, row in await outcomes.stored()]
    # NaN differs from itself.
    assert [(r.class_name, repr(r.value)) for r in stored] == [(r.class_name, repr(r.value)) for r in rows]


async def test_a_repeated_outcome_is_stored_each_time_with_its_id(outcomes: Outcomes) -> None:
    row = OutcomeRow(uuid4().hex, "label", 1.0, 60_000_000, "one")
    for _ in range(2):
        await outcomes.sink.record(MODEL, [row])
    assert [(MODEL, row)] * 2 == await outcomes.stored()


async def test_recording_raises_unavailable_until_the_store_is_back() -> None:
    memory = MemoryOutcomes()
    memory.down = True
    row = OutcomeRow("p", "label", 1.0, 0, "o")
    async with Producer(NO_SERVER, client_id="tests", timeout_seconds=0.5) as producer:
        for sink in (memory, KafkaOutcomes(producer, PARTITIONS)):
            with pytest.raises(Unavailable) as caught:
                await sink.record(MODEL, [row])
            assert "KAFKA_UNAVAILABLE" == caught.value.reason
    memory.down = False
    await memory.record(MODEL, [row])
    assert [(MODEL, row)] == memory.stored
