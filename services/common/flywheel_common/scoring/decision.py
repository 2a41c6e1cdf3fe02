"""Scores and decisions of a model's answers, by the kind of its output.

BINARY: the score is the probability, the decision is score >= threshold. MULTICLASS: the score is the
probability of the most probable class, which is predicted when it reaches the threshold. REGRESSION: the
score is the value; VECTOR: it is 0; neither has a decision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flywheel_common.arrays import Floats, Mask
from flywheel_common.signature import OutputKind

DECIDES = (OutputKind.BINARY, OutputKind.MULTICLASS)
"""Kinds of output with a decision."""


def scores(kind: OutputKind, values: Floats) -> Floats:
    """[rows, width] calibrated values → [rows] scores."""
    if kind is OutputKind.MULTICLASS:
        best: Floats = values.max(axis=1)
        return best
    return np.zeros(len(values)) if kind is OutputKind.VECTOR else values[:, 0]


def decisions(kind: OutputKind, scores: Floats, thresholds: float | Sequence[float]) -> Mask:
    """[rows] scores and the threshold of all rows, or of each row → [rows] decisions."""
    if kind not in DECIDES:
        return np.zeros(len(scores), np.bool_)
    return np.greater_equal(scores, thresholds)
