"""The gateway's stores in memory, for tests of what stands on them. Held to the same contract suites as the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from flywheel_common.errors import Unavailable
from flywheel_inference.encoding.prediction_events import prediction_records
from flywheel_inference.outcomes.row import OutcomeRow
from flywheel_inference.prediction_log.rows import LogRecord, LogRows


class MemoryLog:
    """`prediction_log.LogSink`; `stored` is what it took, in order. `down`: it takes nothing."""

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
    """`outcomes.OutcomeSink`; `stored` is what it took, in order, by model. `down`: it takes nothing."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, OutcomeRow]] = []
        self.down = False

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise Unavailable("Kafka does not answer.", reason="KAFKA_UNAVAILABLE")
        self.stored += [(model, row) for row in rows]
