"""The RecordOutcome use case: labels and business outcomes, acknowledged when they are stored."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_inference.outcomes.errors import InvalidOutcomeValue, MissingPredictionId, TooManyOutcomes
from flywheel_inference.outcomes.labels import problem
from flywheel_inference.outcomes.ports import ModelOutputs, OutcomeSink
from flywheel_inference.outcomes.row import OutcomeRow

MAX_OUTCOMES = 10_000


class OutcomeRecorder:
    """Checks outcomes against the model that they belong to, and stores them."""

    def __init__(self, sink: OutcomeSink, models: ModelOutputs) -> None:
        self._sink = sink
        self._models = models

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> int:
        """How many were accepted: all of them, or an error. Raises InvalidArgument, NotFound UNKNOWN_MODEL,
        Unavailable."""
        outputs = self._models.outputs(model)
        if len(rows) > MAX_OUTCOMES:
            raise TooManyOutcomes(f"The call has {len(rows)} outcomes: send at most {MAX_OUTCOMES}.")
        for place, row in enumerate(rows):
            if not row.prediction_id:
                raise MissingPredictionId(f"outcomes[{place}] has no prediction_id: send one.")
            if found := problem(row, outputs):
                raise InvalidOutcomeValue(f"outcomes[{place}] {found}.")
        if rows:
            await self._sink.record(model, rows)
        return len(rows)
