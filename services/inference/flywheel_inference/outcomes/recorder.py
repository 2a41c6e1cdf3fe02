"""The RecordOutcome use case: labels and business outcomes, acknowledged when they are stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flywheel_inference.outcomes.errors import InvalidOutcomeValue, MissingPredictionId, TooManyOutcomes
from flywheel_inference.outcomes.ports import OutcomeSink
from flywheel_inference.outcomes.row import LABEL, OutcomeRow

MAX_OUTCOMES = 10_000


class OutcomeRecorder:
    """Checks outcomes and stores them."""

    def __init__(self, sink: OutcomeSink) -> None:
        self._sink = sink

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> int:
        """How many were accepted: all of them, or an error. Raises InvalidArgument, Unavailable."""
        if len(rows) > MAX_OUTCOMES:
            raise TooManyOutcomes(f"The call has {len(rows)} outcomes: send at most {MAX_OUTCOMES}.")
        for place, row in enumerate(rows):
            if not row.prediction_id:
                raise MissingPredictionId(f"outcomes[{place}] has no prediction_id: send one.")
            if not row.name:
                raise InvalidOutcomeValue(
                    f"outcomes[{place}] has no name: send `label` or the name of a business metric."
                )
            if not math.isfinite(row.value):
                raise InvalidOutcomeValue(
                    f"outcomes[{place}] has the value {row.value}: send a finite number."
                )
            if row.name == LABEL and row.value not in (0.0, 1.0):
                raise InvalidOutcomeValue(
                    f"outcomes[{place}] is a label with the value {row.value:g}: models predict the "
                    "probability of label 1, so send 0 or 1, or name it as a business metric."
                )
        if rows:
            await self._sink.record(model, rows)
        return len(rows)
