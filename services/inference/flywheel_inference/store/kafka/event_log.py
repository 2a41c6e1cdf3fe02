"""The prediction log and the outcomes in Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from flywheel_common.deadline import in_time
from flywheel_common.errors import FlywheelError
from flywheel_common.kafka import topics
from flywheel_common.kafka.errors import KafkaUnavailable
from flywheel_common.kafka.producer import Outgoing, Producer
from flywheel_inference.encoding.outcome_events import outcome_records
from flywheel_inference.encoding.prediction_events import prediction_records
from flywheel_inference.outcomes.row import OutcomeRow
from flywheel_inference.prediction_log.rows import LogRecord, LogRows


class KafkaPredictionLog:
    """`prediction_log.LogSink`."""

    def __init__(self, producer: Producer, partitions: int) -> None:
        self._producer = producer
        self._partitions = partitions

    def encode(self, rows: Sequence[LogRows]) -> list[LogRecord]:
        return prediction_records(rows, self._partitions)

    async def publish(self, records: Sequence[LogRecord]) -> int:
        stored, _ = await self._producer.send_in_order(
            [
                (topics.PREDICTION_LOGGED, record.value, str(record.partition), record.partition)
                for record in records
            ]
        )
        return stored


class KafkaOutcomes:
    """`outcomes.OutcomeSink`."""

    def __init__(self, producer: Producer, partitions: int) -> None:
        self._producer = producer
        self._partitions = partitions

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> None:
        records: list[Outgoing] = [
            (topics.OUTCOME_RECORDED, value, str(partition), partition)
            for partition, value in outcome_records(model, rows, self._partitions)
        ]
        # A caller's deadline does not interrupt the producer, which others use.
        sending = asyncio.ensure_future(self._producer.send_in_order(records))
        async with in_time(_late):
            _, failure = await asyncio.shield(sending)
        if failure is not None:
            raise failure


def _late() -> FlywheelError:
    return KafkaUnavailable("Kafka does not answer within the deadline of the call: try again.")
