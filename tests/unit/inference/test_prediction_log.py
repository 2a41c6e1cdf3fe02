"""Tests of the prediction log: batching, outages, limits and encoding."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flywheel_common import columns
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import parse_event, payload_of
from flywheel_inference.encoding.prediction_events import prediction_records
from flywheel_inference.fakes.event_log import MemoryPredictionLog
from flywheel_inference.prediction_log.buffer import PredictionLog
from flywheel_inference.prediction_log.rows import LogRecord, LogRows
from flywheel_protos.events.v1 import prediction_pb2
from tests.support.builders.inference import numbered_log_rows
from tests.support.eventually import eventually


def logged(sink: MemoryPredictionLog) -> list[str]:
    """Ids of the stored predictions, in order."""
    batches = (
        payload_of(parse_event(record.value), prediction_pb2.PredictionBatch) for record in sink.stored
    )
    return [prediction for batch in batches for prediction in batch.prediction_ids]


async def running(log: PredictionLog, check: Any) -> None:
    """Runs the log until `check` is true and the log has counted what the sink took."""
    task = asyncio.create_task(log.run())
    try:
        await eventually(lambda: not log.held and check(), within=5)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_offered_rows_are_stored_in_order() -> None:
    sink = MemoryPredictionLog(1)
    log = PredictionLog(sink, flush_seconds=0.01)
    for number in range(5):
        log.offer(numbered_log_rows([number]))
    await running(log, lambda: len(logged(sink)) == 5)
    assert logged(sink) == [f"id-{i}" for i in range(5)]
    assert (log.logged_count, log.dropped_count, log.held) == (5, 0, 0)


async def test_rows_wait_during_an_outage_and_excess_rows_are_counted() -> None:
    sink = MemoryPredictionLog(1)
    sink.down = True
    log = PredictionLog(sink, flush_seconds=0.001, max_rows=10, retry_seconds=0.01)
    for number in range(14):
        log.offer(numbered_log_rows([number]))
    assert (log.held, log.dropped_count) == (10, 4)
    assert not await log.flush()
    log.offer(numbered_log_rows([99]))
    assert (log.held, log.dropped_count) == (10, 5)
    sink.down = False
    await running(log, lambda: len(logged(sink)) == 10)
    assert logged(sink) == [f"id-{i}" for i in range(10)]
    log.offer(numbered_log_rows([100]))
    assert log.held == 1


async def test_rows_beyond_the_memory_limit_are_dropped_and_counted() -> None:
    sink = MemoryPredictionLog(1)
    one = numbered_log_rows([0]).size_bytes
    log = PredictionLog(sink, max_bytes=3 * one)
    for number in range(5):
        log.offer(numbered_log_rows([number]))
    assert (log.held, log.dropped_count) == (3, 2)
    sink.down = True
    assert not await log.flush()
    log.offer(numbered_log_rows([5] * 100))
    assert (log.held, log.dropped_count) == (3, 102), "encoded rows count, too"
    sink.down = False
    assert await log.flush()
    for number in range(3):
        log.offer(numbered_log_rows([number]))
    assert (log.held, log.dropped_count) == (3, 102), "stored rows free their memory"


async def test_rows_that_waited_are_encoded_in_small_steps() -> None:
    encoded: list[int] = []

    class Sink(MemoryPredictionLog):
        def encode(self, rows: Sequence[LogRows]) -> list[LogRecord]:
            encoded.append(sum(len(part.requests) for part in rows))
            return super().encode(rows)

    sink = Sink(1)
    log = PredictionLog(sink, flush_rows=50)
    for number in range(100):
        log.offer(numbered_log_rows(list(range(10 * number, 10 * number + 10))))
    assert await log.flush()
    assert encoded == [50] * 20
    assert logged(sink) == [f"id-{i}" for i in range(1000)]


async def test_rows_that_an_unexpected_error_stopped_are_stored_by_the_next_run() -> None:
    class BrokenOnce(MemoryPredictionLog):
        broken = True

        async def publish(self, records: Sequence[LogRecord]) -> int:
            if self.broken:
                self.broken = False
                raise RuntimeError("broken")
            return await super().publish(records)

    sink = BrokenOnce(1)
    log = PredictionLog(sink, flush_seconds=0.001)
    log.offer(numbered_log_rows([1, 2]))
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(log.run(), 5)
    await running(log, lambda: logged(sink) == ["id-1", "id-2"])
    assert (log.logged_count, log.held) == (2, 0)


async def test_drain_stores_the_remaining_rows_or_counts_them() -> None:
    sink = MemoryPredictionLog(1)
    log = PredictionLog(sink)
    log.offer(numbered_log_rows([1, 2]))
    await log.drain(1.0)
    assert (logged(sink), log.dropped_count) == (["id-1", "id-2"], 0)
    sink.down = True
    log.offer(numbered_log_rows([3]))
    await log.drain(0.05)
    assert log.dropped_count == 1


class SlowLog(MemoryPredictionLog):
    """Stores records at once, which sets `stored_some`, and acknowledges them after `go`."""

    def __init__(self) -> None:
        super().__init__(1)
        self.stored_some, self.go = asyncio.Event(), asyncio.Event()

    async def publish(self, records: Sequence[LogRecord]) -> int:
        count = await super().publish(records)
        self.stored_some.set()
        await self.go.wait()
        return count


async def test_rows_that_come_while_others_are_sent_wait_for_the_next_flush() -> None:
    sink = SlowLog()
    log = PredictionLog(sink)
    log.offer(numbered_log_rows([1, 2]))
    flushing = asyncio.create_task(log.flush())
    await sink.stored_some.wait()
    log.offer(numbered_log_rows([3]))
    log.offer(numbered_log_rows([4]))
    sink.go.set()
    assert await flushing
    assert (logged(sink), log.held) == (["id-1", "id-2"], 2)
    await running(log, lambda: len(logged(sink)) == 4)
    assert [record.rows for record in sink.stored] == [2, 2], "one record for both"


async def test_rows_in_flight_when_the_gateway_stops_are_stored_once() -> None:
    sink = SlowLog()
    log = PredictionLog(sink)
    running = asyncio.create_task(log.run())
    log.offer(numbered_log_rows([1, 2]))
    await sink.stored_some.wait()
    running.cancel()
    await asyncio.wait([running])
    log.offer(numbered_log_rows([3]))
    draining = asyncio.create_task(log.drain(5.0))
    await asyncio.sleep(0)
    sink.go.set()
    await draining
    assert logged(sink) == ["id-1", "id-2", "id-3"]
    assert (log.logged_count, log.held, log.dropped_count) == (3, 0, 0)


def test_records_hold_ids_of_their_partition_and_aligned_columns() -> None:
    records = prediction_records(
        [numbered_log_rows(list(range(30))), numbered_log_rows(list(range(30, 60)))], 4
    )
    seen = []
    for record in records:
        event = parse_event(record.value)
        batch = payload_of(event, prediction_pb2.PredictionBatch)
        assert event.key == str(record.partition) and record.rows == len(batch.prediction_ids)
        numbers = [int(p.removeprefix("id-")) for p in batch.prediction_ids]
        seen += numbers
        assert all(topics.partition_for(p, 4) == record.partition for p in batch.prediction_ids)
        assert np.frombuffer(batch.event_times, "<i8").tolist() == numbers
        assert np.frombuffer(batch.scores, "<f8").tolist() == [n / 100 for n in numbers]
        assert list(batch.decisions) == [int(n > 50) for n in numbers]
        features = columns.from_table(batch.features)
        assert features["a__x"][1].tolist() == [n % 3 > 0 for n in numbers]
        assert [v for v, ok in zip(*features["a__x"], strict=True) if ok] == [n for n in numbers if n % 3 > 0]
        assert features["a__c"][0].tolist() == [f"c{n}" for n in numbers]
        assert columns.from_table(batch.entities)["tail"][0].tolist() == [f"N{n}" for n in numbers]
        assert columns.from_table(batch.request_fields)["miles"][1].tolist() == [n % 2 == 0 for n in numbers]
        assert not batch.error_reasons
        assert not batch.not_yet_valid
        applied = columns.from_table(batch.applied_offsets)
        assert [v.tolist() for v in applied["h@1"][0]] == [[0, n] * (n % 3) for n in numbers]
        assert [v.tolist() for v in applied["w@2"][0]] == [[1, n] for n in numbers]
    assert sorted(seen) == list(range(60))


def test_rows_without_features_have_null_columns_and_a_reason() -> None:
    (record,) = prediction_records([numbered_log_rows([5], with_features=False)], 1)
    batch = payload_of(parse_event(record.value), prediction_pb2.PredictionBatch)
    features = columns.from_table(batch.features)
    assert [(name, valid.tolist()) for name, (_, valid) in features.items()] == [
        ("a__x", [False]),
        ("a__c", [False]),
    ]
    assert list(batch.error_reasons) == ["MODEL_UNAVAILABLE"]
    assert not batch.applied_offsets.columns
    assert list(batch.sources) == [prediction_pb2.PREDICTION_SOURCE_DEFAULT]


def test_features_that_were_not_yet_valid_are_named_per_row() -> None:
    later = replace(numbered_log_rows([1, 2]), not_yet_valid=["a__x", ""])
    (record,) = prediction_records([numbered_log_rows([0]), later], 1)
    batch = payload_of(parse_event(record.value), prediction_pb2.PredictionBatch)
    assert ["", "a__x", ""] == list(batch.not_yet_valid)
