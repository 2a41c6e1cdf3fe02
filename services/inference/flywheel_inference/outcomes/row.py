"""One outcome of a prediction."""

from __future__ import annotations

from dataclasses import dataclass

LABEL = "label"
"""Name of the outcome that the model predicts."""


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One outcome of one prediction. `event_micros`: when it became known, microseconds since 1970 UTC.
    `class_name`: the label of a MULTICLASS model, whose `value` is NaN; empty else."""

    prediction_id: str
    name: str
    value: float
    event_micros: int
    outcome_id: str
    class_name: str = ""
