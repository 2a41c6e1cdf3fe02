"""The calibration curve: mean score and share of positives per bin of scores."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from flywheel_common.arrays import Floats

BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """One bin: its rows, their mean score, the share of positive labels, and its Wilson interval."""

    rows: int
    mean_score: float
    mean_label: float
    low: float
    high: float


def calibration_curve(
    labels: Floats, scores: Floats, weights: Floats, *, bins: int = BINS, confidence: float = 0.95
) -> list[CalibrationBin]:
    """The bins between quantiles of the scores that have weight, in ascending order.

    The interval takes the effective number of rows, (Σw)² / Σw² (Kish 1965), which is their number without
    weights.
    """
    edges = np.percentile(scores, np.linspace(0, 100, bins + 1))
    index = np.searchsorted(edges[1:-1], scores)
    totals = np.bincount(index, weights=weights, minlength=bins)
    squares = np.bincount(index, weights=weights**2, minlength=bins)
    rows = np.bincount(index, minlength=bins)
    score_sums = np.bincount(index, weights=weights * scores, minlength=bins)
    label_sums = np.bincount(index, weights=weights * labels, minlength=bins)
    found = []
    for number in np.flatnonzero(totals > 0):
        total = totals[number]
        share = float(label_sums[number] / total)
        low, high = wilson(share, float(total**2 / squares[number]), confidence)
        found.append(CalibrationBin(int(rows[number]), float(score_sums[number] / total), share, low, high))
    return found


def wilson(share: float, rows: float, confidence: float) -> tuple[float, float]:
    """Score interval of a share of `rows` rows (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = share + z * z / (2 * rows)
    spread = z * np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    return float(max(0.0, (centre - spread) / scale)), float(min(1.0, (centre + spread) / scale))
