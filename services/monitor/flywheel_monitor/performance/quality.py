"""Quality of labelled predictions, from the counts of a window, by kind of output.

BINARY: AUC, log-loss, Brier score, calibration. MULTICLASS: the same without AUC, where the score is the
probability of the predicted class (calibration: Guo et al. 2017), accuracy and macro F1. REGRESSION: root
mean squared and mean absolute error, R². A VECTOR output has no labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_common.probability import CALIBRATION_BINS
from flywheel_common.signature import OutputKind
from flywheel_monitor.performance.standard_errors import (
    average_precision_error,
    brier_error,
    calibration_error_error,
    chance_calibration_error,
    effective_labels,
    mean_error,
    rmse_error,
    share_error,
)
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.delays import DELAY_EDGES_SECONDS
from flywheel_monitor.windows.histograms import SCORE_BINS, quantile
from flywheel_monitor.windows.layout import Sums
from flywheel_monitor.windows.losses import is_positive

EXACT_AUC_ROWS = 5_000
"""Predictions up to which the AUC is computed from the stored rows; above, from score bins, with an error of
at most `auc_error_bound`."""


@dataclass(frozen=True)
class Quality:
    """Figures over `labelled` rows; None where the kind of output or the labels do not define them (AUC: with
    labels of one class only). `label_mean`: the share of positives, or the mean of the labels. `labels`:
    their histogram, for label drift, of other kinds than BINARY. `…_error` are standard errors."""

    labelled: int = 0
    auc: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    calibration_error: float | None = None
    label_mean: float | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    rmse: float | None = None
    mean_absolute_error: float | None = None
    r2: float | None = None
    labels: tuple[int, ...] = ()
    average_precision: float | None = None
    auc_error: float | None = None
    log_loss_error: float | None = None
    label_delay_p50_seconds: float | None = None
    """Of the labels known so far, from bins: at most 10 % too long."""
    label_delay_p90_seconds: float | None = None
    brier_error: float | None = None
    average_precision_error: float | None = None
    calibration_error_error: float | None = None
    calibration_error_by_chance: float | None = None
    """The mean of calibrated scores with these rows (`standard_errors`)."""
    accuracy_error: float | None = None
    rmse_error: float | None = None
    effective_labels: float | None = None
    """Number of independent rows that say as much as the labelled ones (`standard_errors`)."""


_KNOWN: WeakKeyDictionary[WindowCounts, Quality] = WeakKeyDictionary()
"""Of windows that are in memory: they never change."""


def quality(window: WindowCounts) -> Quality:
    """The figures over all labelled rows of a window."""
    found = _KNOWN.get(window)
    if found is None:
        found = _KNOWN[window] = _quality(window)
    return found


def _quality(window: WindowCounts) -> Quality:
    if window.labelled == 0 or window.layout.output.kind is OutputKind.VECTOR:
        return Quality()
    found = replace(_by_kind(window), effective_labels=effective_labels(window))
    delays = window.label_delays
    if not delays.any():
        return found
    return replace(
        found,
        label_delay_p50_seconds=quantile(DELAY_EDGES_SECONDS, delays, 0.5),
        label_delay_p90_seconds=quantile(DELAY_EDGES_SECONDS, delays, 0.9),
    )


def _by_kind(window: WindowCounts) -> Quality:
    kind, n = window.layout.output.kind, window.labelled
    if kind is OutputKind.REGRESSION:
        return _regression(window, n)
    by_bin, sums = _calibration_counts(window)
    found = Quality(
        labelled=n,
        log_loss=window.total(Sums.LOSS) / n,
        brier=window.total(Sums.BRIER) / n,
        calibration_error=calibration_error(*by_bin, sums),
        calibration_error_error=calibration_error_error(*by_bin),
        calibration_error_by_chance=chance_calibration_error(by_bin[0], sums),
        log_loss_error=mean_error(window.total(Sums.LOSS), window.total(Sums.LOSS_SQUARED), n),
    )
    positives = int(window.positives.sum())
    if kind is OutputKind.BINARY:
        counts = window.positives, window.negatives
        ranked = _ranked(found, *counts)
        return replace(ranked, label_mean=positives / n, brier_error=brier_error(*counts))
    confusion = window.confusion
    return replace(
        found,
        accuracy=positives / n,
        accuracy_error=share_error(positives / n, n),
        macro_f1=_macro_f1(confusion),
        labels=tuple(confusion.sum(axis=1).tolist()),
    )


def _ranked(found: Quality, positives: Floats | Ints, negatives: Floats | Ints) -> Quality:
    """The quality with the figures that depend on the order of the scores alone."""
    precision = average_precision_from_counts(positives, negatives)
    hits = float(positives.sum())
    return replace(
        found,
        auc=auc_from_counts(positives, negatives),
        average_precision=precision,
        average_precision_error=None if precision is None else average_precision_error(precision, hits),
        auc_error=auc_standard_error(positives, negatives),
    )


def _regression(window: WindowCounts, n: int) -> Quality:
    squared, label, label_squared = (
        window.total(which) for which in (Sums.LOSS, Sums.LABEL, Sums.LABEL_SQUARED)
    )
    spread, rmse = label_squared - label * label / n, math.sqrt(squared / n)
    return Quality(
        labelled=n,
        label_mean=label / n,
        rmse=rmse,
        rmse_error=rmse_error(rmse, mean_error(squared, window.total(Sums.LOSS_SQUARED), n)),
        mean_absolute_error=window.total(Sums.ABSOLUTE_ERROR) / n,
        r2=1 - squared / spread if spread > 0 else None,
        labels=tuple((window.positives + window.negatives).tolist()),
    )


def _macro_f1(confusion: Ints) -> float:
    """Mean over the classes that occur of 2 TP / (2 TP + FP + FN)."""
    hits = np.diag(confusion)
    occurred = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float((2 * hits[occurred > 0] / occurred[occurred > 0]).mean())


def _calibration_counts(window: WindowCounts) -> tuple[tuple[Ints, Ints], Floats]:
    """((rows, positives), sum of the scores) per calibration bin."""
    positives, negatives = window.positives, window.negatives
    by_bin = (CALIBRATION_BINS, SCORE_BINS // CALIBRATION_BINS)
    rows = (positives + negatives).reshape(by_bin).sum(axis=1)
    sums = np.array([window.total(Sums.CALIBRATION, b) for b in range(CALIBRATION_BINS)])
    return (rows, positives.reshape(by_bin).sum(axis=1)), sums


def with_exact_auc(found: Quality, scores: Floats, labels: Floats) -> Quality:
    """The quality with the figures of `_ranked` of the [n] rows themselves, if they are all the labelled
    rows; otherwise unchanged."""
    if len(scores) == 0 or len(scores) != found.labelled:
        return found
    return _ranked(found, *_by_score(scores, labels))


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


def average_precision_from_counts(positives: Floats | Ints, negatives: Floats | Ints) -> float | None:
    """Area under the precision-recall curve from the rows of each class per score bin in rising order: the
    sum over thresholds of precision times the step of recall, without interpolation (Davis and Goadrich 2006;
    average_precision_score of scikit-learn). Rows of a bin are ties. None if a class is missing."""
    p, n = float(positives.sum()), float(negatives.sum())
    if p == 0 or n == 0:
        return None
    found, rest = positives[::-1], negatives[::-1]
    hits = np.cumsum(found)
    decided = hits + np.cumsum(rest)
    return float(np.sum(found[found > 0] * hits[found > 0] / decided[found > 0]) / p)


def auc_standard_error(positives: Floats | Ints, negatives: Floats | Ints) -> float | None:
    """Standard error of `auc_from_counts` for independent rows: the variance of the share of negatives below
    each positive, and of positives above each negative (DeLong, DeLong and Clarke-Pearson, Biometrics 44,
    1988). None with fewer than two rows of a class."""
    p, n = float(positives.sum()), float(negatives.sum())
    if p < 2 or n < 2:
        return None
    below = np.asarray((np.cumsum(negatives) - negatives / 2.0) / n, np.float64)
    above = np.asarray(1 - (np.cumsum(positives) - positives / 2.0) / p, np.float64)
    return math.sqrt(_variance(below, positives, p) / p + _variance(above, negatives, n) / n)


def _variance(values: Floats, rows: Floats | Ints, n: float) -> float:
    """Sample variance of values that come `rows` times each, n in total."""
    mean = float(values @ rows) / n
    return float((values - mean) ** 2 @ rows) / (n - 1)


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
