"""Which labels count, and which of several labels of a prediction is valid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flywheel_common.arrays import Floats, Mask


class Label(NamedTuple):
    """A label of a prediction. The largest (event time, outcome id) wins, so that repeats and any order of
    arrival end in the same label."""

    event_time: int
    outcome_id: str
    value: float

    def replaces(self, other: Label) -> bool:
        """Whether this label is newer than the other. The value does not matter."""
        return self[:2] > other[:2]


def not_binary(labels: Floats) -> Mask:
    """[n] bool: labels that are neither 0 nor 1. Every model predicts the probability of label 1."""
    return ~np.isin(labels, (0.0, 1.0))
