"""Standard errors of the quality of a BINARY model, from counts by score bin, for independent rows."""

from __future__ import annotations

import math

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.windows.histograms import SCORE_BINS


def brier_error(positives: Ints, negatives: Ints) -> float | None:
    """Standard error of the Brier score, with the rows of each bin of the scores in its middle (they are at
    most 1 / (2 SCORE_BINS) away). None for fewer than two rows."""
    rows = np.concatenate([positives, negatives]).astype(np.float64)
    n = float(rows.sum())
    if n < 2:
        return None
    middle = (np.arange(SCORE_BINS) + 0.5) / SCORE_BINS
    terms = np.concatenate([(1 - middle) ** 2, middle**2])
    mean = float(terms @ rows) / n
    return math.sqrt(float((terms - mean) ** 2 @ rows) / (n - 1) / n)


def average_precision_error(average_precision: float, positives: float) -> float:
    """The binomial standard error over the positives (Boyd, Eng and Page, ECML PKDD 2013)."""
    return math.sqrt(average_precision * (1 - average_precision) / positives)


def calibration_error_error(rows: Ints, positives: Ints) -> float | None:
    """Standard error of the calibration error, from the rows and positives of each of its bins: that of the
    sum of the differences with the signs that they have. None without rows."""
    n, share = float(rows.sum()), positives / np.maximum(rows, 1)
    return math.sqrt(float(rows @ (share * (1 - share)))) / n if n else None


def chance_calibration_error(rows: Ints, score_sums: Floats) -> float | None:
    """What the calibration error of calibrated scores is on average: positives are binomial in each bin, and
    the mean absolute deviation of a normal variable is sqrt(2 / pi) times its standard deviation. Few rows
    have a large one. None without rows."""
    n, mean = float(rows.sum()), np.clip(score_sums / np.maximum(rows, 1), 0.0, 1.0)
    deviations = np.sqrt(rows * mean * (1 - mean))
    return math.sqrt(2 / math.pi) * float(deviations.sum()) / n if n else None
