"""TODO docstring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel_inference.prediction_log.rows import LogRecord, LogRows


class LogSink(Protocol):
    """Where the log goes. It keeps records in the order in which they were published; equal ids are kept as often as they come:
    consumers dedupe."""

    def encode(self, rows: Sequence[LogRows]) -> list[LogRecord]:
        """Rows of one group as records that hold ids of their own partition only. No record is larger than the log takes; a
        row that is too large alone is left out."""
        ...

    async def publish(self, records: Sequence[LogRecord]) -> int:
        """How many records at the front are stored; fewer than all when the log does not answer now."""
        ...
