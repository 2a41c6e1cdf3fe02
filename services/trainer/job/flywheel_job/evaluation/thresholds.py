"""The choice of a decision threshold: by F-beta, or by the costs of wrong decisions.

A row is decided positive when score >= threshold. Of equally good thresholds, the highest one is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Floats
from flywheel_job.evaluation.ranking import Ranking

DEFAULT_THRESHOLD = 0.5
"""Chosen if no row is positive, so that every threshold has the same F-beta."""


@dataclass(frozen=True)
class Costs:
    """Cost of a false positive and of a false negative, in the same unit."""

    false_positive: float
    false_negative: float


@dataclass(frozen=True)
class Threshold:
    """A threshold, and the value that it minimizes or maximizes."""

    threshold: float
    value: float


def by_f_beta(ranking: Ranking, labels: Floats, weights: Floats, beta: float = 1.0) -> Threshold:
    """The threshold of the largest F-beta: (1 + β²)·TP / ((1 + β²)·TP + β²·FN + FP)."""
    positive = float((weights * labels).sum())
    if positive == 0:
        return Threshold(DEFAULT_THRESHOLD, 0.0)
    square = beta * beta
    hits = np.cumsum(ranking.per_group(weights * labels))
    decided = np.cumsum(ranking.per_group(weights))
    values = (1 + square) * hits / (decided + square * positive)
    best = int(np.argmax(values))
    return Threshold(float(ranking.thresholds[best]), float(values[best]))


def by_cost(ranking: Ranking, labels: Floats, weights: Floats, costs: Costs) -> Threshold:
    """The threshold of the smallest mean cost of a row.

    If it is cheapest to decide no row positive, the threshold is the next number above the highest score.
    """
    positives = ranking.per_group(weights * labels)
    false_positives = np.cumsum(ranking.per_group(weights * (1 - labels)))
    false_negatives = positives.sum() - np.cumsum(positives)
    total = float(weights.sum())
    means = (costs.false_positive * false_positives + costs.false_negative * false_negatives) / total
    none = costs.false_negative * float(positives.sum()) / total
    best = int(np.argmin(means))
    if none <= means[best]:
        return Threshold(float(np.nextafter(ranking.thresholds[0], np.inf)), none)
    return Threshold(float(ranking.thresholds[best]), float(means[best]))
