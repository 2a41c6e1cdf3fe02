"""The prediction log and the outcomes in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from flywheel_common.kafka.client import unavailable
from flywheel_inference.encoding.prediction_events import prediction_records
from flywheel_inference.outcomes.row import OutcomeRow
from flywheel_inference.prediction_log.rows import LogRecord, LogRows


class MemoryPredictionLog:
    """`prediction_log.LogSink`. `stored`: the records, in order. `down`: nothing is stored."""

    def __init__(self, partitions: int = 4) -> None:
        self._partitions = partitions
        self.stored: list[LogRecord] = []
        self.down = False

    def encode(self, rows: Sequence[LogRows]) -> list[LogRecord]:
        return prediction_records(rows, self._partitions)

    async def publish(self, records: Sequence[LogRecord]) -> int:
        await asyncio.sleep(0)
        if self.down:
            return 0
        self.stored += records
        return len(records)


class MemoryOutcomes:
    """`outcomes.OutcomeSink`. `stored`: (model, row), in order. `down`: nothing is stored."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, OutcomeRow]] = []
        self.down = False

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise unavailable(TimeoutError())
        self.stored += [(model, row) for row in rows]
