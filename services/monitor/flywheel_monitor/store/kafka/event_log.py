"""The topics of predictions and outcomes, read by range, without a consumer group."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, TopicPartition

from flywheel_common.kafka.client import kafka_errors, stop_consumer
from flywheel_common.kafka.record import Record
from flywheel_monitor.replay.ports import Positions

BATCH_RECORDS = 200


class KafkaEventLog:
    """`EventLog`."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap

    @asynccontextmanager
    async def range(self, since_us: int, until: Positions) -> AsyncIterator[KafkaLogRange]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            client_id="flywheel-monitor-replay",
            max_partition_fetch_bytes=8 * 1024 * 1024,
        )
        try:
            with kafka_errors():
                await consumer.start()
                found = await _range(consumer, since_us, until)
            yield found
        finally:
            await stop_consumer(consumer, seconds=5)


class KafkaLogRange:
    """`LogRange` of a started consumer; `starts` and `ends` are offsets by partition."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        starts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        complete_from_us: int | None,
    ) -> None:
        self._consumer = consumer
        self._starts, self._ends = starts, ends
        self.records = sum(max(0, ends[tp] - start) for tp, start in starts.items())
        self.complete_from_us = complete_from_us

    async def read(self) -> AsyncIterator[Sequence[Record]]:
        consumer = self._consumer
        for tp, start in sorted(self._starts.items()):
            if start >= self._ends[tp]:
                continue
            with kafka_errors():
                consumer.assign([tp])
                consumer.seek(tp, start)
            reached = start
            while reached < self._ends[tp]:
                with kafka_errors():
                    polled = await consumer.getmany(tp, timeout_ms=500, max_records=BATCH_RECORDS)
                    # Offsets have gaps: the position says how far it has read, also without records.
                    reached = await consumer.position(tp)
                records = [Record.of(item) for item in polled.get(tp, ()) if item.offset < self._ends[tp]]
                if records:
                    yield records


async def _range(consumer: AIOKafkaConsumer, since_us: int, until: Positions) -> KafkaLogRange:
    ends = {TopicPartition(topic, number): offset for (topic, number), offset in until.items()}
    if not ends:
        return KafkaLogRange(consumer, {}, {}, None)
    begins = await consumer.beginning_offsets(list(ends))
    since_ms = max(0, since_us // 1000)
    found = await consumer.offsets_for_times(dict.fromkeys(ends, since_ms))
    starts: dict[TopicPartition, int] = {}
    complete: list[int] = []
    for tp, end in ends.items():
        first = found[tp]
        starts[tp] = end if first is None else max(begins[tp], first.offset)
        # All that the partition still has arrived later: what was deleted may have too.
        if begins[tp] > 0 and first is not None and first.offset <= begins[tp] and first.timestamp > since_ms:
            complete.append(first.timestamp * 1000)
        elif begins[tp] > 0 and first is None and begins[tp] >= end:
            complete.append(since_us)
    return KafkaLogRange(consumer, starts, ends, max(complete, default=None))
