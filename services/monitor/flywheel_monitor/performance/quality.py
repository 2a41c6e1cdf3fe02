"""Quality of labelled predictions: AUC, log-loss, Brier score and calibration.

Totals come from stored rows or from the counts of a window; `quality` alone turns totals into the figures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.histograms import CALIBRATION_BINS, SCORE_BINS, calibration_bins, score_bins
from flywheel_monitor.windows.layout import Sums
from flywheel_monitor.windows.losses import brier_terms, is_positive, log_loss_terms


@dataclass(frozen=True)
class Quality:
    """Figures over `labelled` rows; None without labels, and for `auc` also with labels of one class only."""

    labelled: int = 0
    auc: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    calibration_error: float | None = None
    label_mean: float | None = None


@dataclass(frozen=True)
class LabelledTotals:
    """What quality is computed from: rows of each class by rising score [distinct scores or score bins],
    sums of the losses, and per calibration bin [CALIBRATION_BINS] its rows, its positives and the sum of
    its scores."""

    positives: Floats | Ints
    negatives: Floats | Ints
    log_loss: float
    brier: float
    bin_rows: Floats | Ints
    bin_positives: Floats | Ints
    bin_scores: Floats | Ints


def totals_of_rows(scores: Floats, labels: Floats) -> LabelledTotals:
    """Exact totals of [n] scores and labels."""
    positives, negatives = _by_score(scores, labels)
    bins = calibration_bins(score_bins(scores))
    return LabelledTotals(
        positives=positives,
        negatives=negatives,
        log_loss=float(log_loss_terms(scores, labels).sum()),
        brier=float(brier_terms(scores, labels).sum()),
        bin_rows=np.bincount(bins, minlength=CALIBRATION_BINS),
        bin_positives=np.bincount(bins, weights=is_positive(labels), minlength=CALIBRATION_BINS),
        bin_scores=np.bincount(bins, weights=scores, minlength=CALIBRATION_BINS),
    )


def totals_of_window(window: WindowCounts) -> LabelledTotals:
    """Totals from counts: sums to the fixed-point resolution of 2**-32, classes by score bin."""
    positives, negatives = window.positives, window.negatives
    by_calibration_bin = (CALIBRATION_BINS, SCORE_BINS // CALIBRATION_BINS)
    return LabelledTotals(
        positives=positives,
        negatives=negatives,
        log_loss=window.total(Sums.LOG_LOSS),
        brier=window.total(Sums.BRIER),
        bin_rows=(positives + negatives).reshape(by_calibration_bin).sum(axis=1),
        bin_positives=positives.reshape(by_calibration_bin).sum(axis=1),
        bin_scores=np.array([window.total(Sums.CALIBRATION, b) for b in range(CALIBRATION_BINS)]),
    )


def quality(totals: LabelledTotals) -> Quality:
    """The figures over all rows of the totals."""
    positives = int(totals.positives.sum())
    n = positives + int(totals.negatives.sum())
    if n == 0:
        return Quality()
    return Quality(
        labelled=n,
        auc=auc_from_counts(totals.positives, totals.negatives),
        log_loss=totals.log_loss / n,
        brier=totals.brier / n,
        calibration_error=calibration_error(totals.bin_rows, totals.bin_positives, totals.bin_scores),
        label_mean=positives / n,
    )


def with_exact_auc(found: Quality, scores: Floats, labels: Floats) -> Quality:
    """The quality with the AUC of the [n] rows themselves, if they are all the labelled rows; otherwise
    unchanged."""
    if len(scores) == 0 or len(scores) != found.labelled:
        return found
    return replace(found, auc=auc(scores, labels))


def auc(scores: Floats, labels: Floats) -> float | None:
    """Area under the ROC curve: P(score of a positive > score of a negative) plus half of the ties (Mann
    and Whitney 1947). None if a class is missing."""
    return auc_from_counts(*_by_score(scores, labels))


def auc_from_counts(positives: Floats | Ints, negatives: Floats | Ints) -> float | None:
    """AUC from the rows of each class per score bin in rising order; ties inside a bin count half. The
    error is at most `auc_error_bound`."""
    p, n = float(positives.sum()), float(negatives.sum())
    if p == 0 or n == 0:
        return None
    lower = np.cumsum(negatives) - negatives
    return float(np.sum(positives * (lower + negatives / 2.0)) / (p * n))


def auc_error_bound(positives: Ints, negatives: Ints) -> float:
    """Largest distance of `auc_from_counts` from the AUC over the rows: Σ p_i n_i / (2 P N)."""
    p, n = float(positives.sum()), float(negatives.sum())
    return float(np.sum(positives.astype(np.float64) * negatives) / (2 * p * n)) if p and n else 0.0


def calibration_error(
    rows: Floats | Ints, positives: Floats | Ints, score_sums: Floats | Ints
) -> float | None:
    """Expected calibration error over equal-width bins: Σ n_b / n |mean score - share of positives|
    (Naeini et al. 2015)."""
    n = float(rows.sum())
    return float(np.sum(np.abs(score_sums - positives)) / n) if n else None


def _by_score(scores: Floats, labels: Floats) -> tuple[Floats | Ints, Floats | Ints]:
    """(positives, negatives) per distinct score in rising order."""
    positive = is_positive(labels)
    distinct, inverse = np.unique(scores, return_inverse=True)
    return (
        np.bincount(inverse, weights=positive, minlength=len(distinct)),
        np.bincount(inverse, weights=~positive, minlength=len(distinct)),
    )
