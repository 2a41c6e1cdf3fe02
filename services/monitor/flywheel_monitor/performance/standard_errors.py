"""Standard errors of the quality of a window, from its counts and sums, for independent rows, and how many
independent rows its labels are."""

from __future__ import annotations

import math

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.drift import design_effect
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.histograms import SCORE_BINS
from flywheel_monitor.windows.layout import Sums
from flywheel_monitor.windows.sums import values


def mean_error(total: float, squared: float, n: int) -> float | None:
    """Standard error of a mean of n terms from their sum and the sum of their squares; None for fewer than
    two."""
    if n < 2:
        return None
    return math.sqrt(max(0.0, squared - total * total / n) / (n - 1) / n)


def share_error(share: float, n: float) -> float:
    """The binomial standard error of a share of n rows."""
    return math.sqrt(max(0.0, share * (1 - share)) / n)


def rmse_error(rmse: float, squared_error: float | None) -> float | None:
    """Standard error of the root of a mean squared error, from that of the mean: the delta method."""
    return None if squared_error is None or rmse <= 0 else squared_error / (2 * rmse)


def auc_error_at(auc: float, positives: float, negatives: float) -> float | None:
    """Standard error of the AUC of so many rows whose true AUC is `auc`, for exponential scores (Hanley and
    McNeil, Radiology 143, 1982). Few rows of one class, which may happen to lie together, have no small one.
    None without rows of a class."""
    if not positives or not negatives:
        return None
    of_two_positives, of_two_negatives = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = (
        auc * (1 - auc)
        + (positives - 1) * (of_two_positives - auc * auc)
        + (negatives - 1) * (of_two_negatives - auc * auc)
    )
    return math.sqrt(max(0.0, variance) / (positives * negatives))


def effective_labels(window: WindowCounts) -> float:
    """Number of independent labelled rows that say as much as those of the window: their number over the
    larger of the design effects of the mean loss and of the mean label (`drift.design_effect`)."""
    n, layout = window.labelled, window.layout
    labelled = window.count_blocks[:, layout.positives : layout.latencies].sum(axis=1)
    # The square of a label of 0 or 1 is the label itself.
    squared = Sums.LABEL if layout.output.unit_interval else Sums.LABEL_SQUARED
    effects = [1.0]
    for which, squares in ((Sums.LOSS, Sums.LOSS_SQUARED), (Sums.LABEL, squared)):
        sums = values(window.sum_blocks[:, layout.common_sums + which])
        mean = window.total(which) / n
        spread = math.sqrt(max(0.0, window.total(squares) / n - mean * mean))
        effects.append(design_effect.of_mean(np.array(sums, np.float64), labelled, spread))
    return n / max(effects)


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
