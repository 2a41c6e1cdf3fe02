"""TODO docstring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel_inference.outcomes.row import OutcomeRow


class OutcomeSink(Protocol):
    """Returns when Kafka has all rows (acks = all), those of one prediction in their order. Raises Unavailable KAFKA_UNAVAILABLE,
    InvalidArgument EVENT_TOO_LARGE; some rows may be stored then. Equal rows are kept as often as they come, which is harmless
    because consumers dedupe by outcome id."""

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> None: ...
