"""Labels and business outcomes on their way to Kafka: acknowledged when every replica has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flywheel_common.errors import InvalidArgument
from flywheel_inference.outcomes.ports import OutcomeSink
from flywheel_inference.outcomes.row import OutcomeRow

MAX_OUTCOMES = 10_000


class OutcomeRecorder:
    """The RecordOutcome use case."""

    def __init__(self, sink: OutcomeSink) -> None:
        self._sink = sink

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> int:
        """How many were accepted: all or, on an error, none is acknowledged. Raises InvalidArgument, Unavailable."""
        if len(rows) > MAX_OUTCOMES:
            raise InvalidArgument(
                f"{len(rows)} outcomes are too many for one call: send at most {MAX_OUTCOMES}.",
                reason="TOO_MANY_OUTCOMES",
            )
        for place, row in enumerate(rows):
            if not row.prediction_id:
                raise InvalidArgument(
                    f"outcomes[{place}] names no prediction.", reason="MISSING_PREDICTION_ID"
                )
            if not row.name:
                raise InvalidArgument(
                    f"outcomes[{place}] has no name: `label`, or a business metric.", reason="INVALID_VALUE"
                )
            if not math.isfinite(row.value):
                raise InvalidArgument(
                    f"outcomes[{place}] has the value {row.value}: send a finite number.",
                    reason="INVALID_VALUE",
                )
        if rows:
            await self._sink.record(model, rows)
        return len(rows)
