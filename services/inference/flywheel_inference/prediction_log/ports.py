"""Port for the storage of the prediction log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel_inference.prediction_log.rows import LogRecord, LogRows


class Costs(Protocol):
    """Counts what predictions cost."""

    def add(self, model: str, total: float, predictions: int) -> None:
        """Adds predictions of a model and their costs together, without waiting."""
        ...


class LogSink(Protocol):
    """Stores the prediction log. Keeps records in the order of `publish`. Equal ids are stored as often as
    they are published; consumers dedupe."""

    def encode(self, rows: Sequence[LogRows]) -> list[LogRecord]:
        """Records for rows of one group. A record holds only ids of its partition and is never larger than
        the sink accepts; a row that is too large alone is left out."""
        ...

    async def publish(self, records: Sequence[LogRecord]) -> int:
        """How many records at the front are stored; fewer than all when the sink is unavailable."""
        ...
