"""Which of several labels of a prediction is valid."""

from __future__ import annotations

from typing import NamedTuple


class Label(NamedTuple):
    """A label of a prediction. The largest (event time, outcome id) wins, so that repeats and any order of
    arrival end in the same label."""

    event_time: int
    outcome_id: str
    value: float

    def replaces(self, other: Label) -> bool:
        """Whether this label is newer than the other. The value does not matter."""
        return self[:2] > other[:2]
