"""One outcome of a prediction."""

from __future__ import annotations

from dataclasses import dataclass

LABEL = "label"
"""Name of the outcome that the model predicts the probability of: its value is 0 or 1."""


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One outcome of one prediction. `event_micros`: when it became known, microseconds since 1970 UTC."""

    prediction_id: str
    name: str
    value: float
    event_micros: int
    outcome_id: str
