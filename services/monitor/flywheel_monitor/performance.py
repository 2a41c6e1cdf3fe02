"""Quality of labelled predictions: AUC, log-loss, Brier score, calibration; from stored rows or from a window's counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.drift import Verdict
from flywheel_monitor.layout import CALIBRATION_BINS, SCORE_BINS, Sums, Window, log_loss_terms
from flywheel_monitor.policy import MonitorPolicy


def auc(scores: Floats, labels: Floats) -> float | None:
    """Area under the ROC curve: P(score of a positive > of a negative) + half the ties (Mann and Whitney 1947).
    None when a class is missing."""
    positive = labels > 0.5
    p = int(positive.sum())
    n = len(labels) - p
    if p == 0 or n == 0:
        return None
    distinct, inverse = np.unique(scores, return_inverse=True)
    above = np.bincount(inverse, weights=positive, minlength=len(distinct))
    below = np.bincount(inverse, weights=~positive, minlength=len(distinct))
    return auc_from_counts(above, below)


def auc_from_counts(positives: Floats | Ints, negatives: Floats | Ints) -> float | None:
    """AUC from counts per score bin in rising order; ties inside a bin count half. From histograms it is off by at most
    Σ p_i n_i / (2 P N)."""
    p, n = float(positives.sum()), float(negatives.sum())
    if p == 0 or n == 0:
        return None
    lower = np.cumsum(negatives) - negatives
    return float(np.sum(positives * (lower + negatives / 2.0)) / (p * n))


def auc_error_bound(positives: Ints, negatives: Ints) -> float:
    """How far `auc_from_counts` can be from the AUC over the rows."""
    p, n = float(positives.sum()), float(negatives.sum())
    return float(np.sum(positives.astype(np.float64) * negatives) / (2 * p * n)) if p and n else 0.0


def log_loss(scores: Floats, labels: Floats) -> float | None:
    """Mean of -ln p(label); None without rows."""
    return float(log_loss_terms(scores, labels).mean()) if len(scores) else None


def brier(scores: Floats, labels: Floats) -> float | None:
    """Mean squared error of the probabilities; None without rows."""
    return float(np.mean((scores - (labels > 0.5)) ** 2)) if len(scores) else None


def calibration_error(counts: Ints, positives: Floats | Ints, score_sums: Floats | Ints) -> float | None:
    """Expected calibration error over equal-width bins: Σ n_b / n |mean score - share of positives| (Naeini et al. 2015)."""
    n = float(counts.sum())
    return float(np.sum(np.abs(score_sums - positives)) / n) if n else None


@dataclass(frozen=True)
class Quality:
    """None where there are no labels, or (AUC) only one class."""

    labelled: int = 0
    auc: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    calibration_error: float | None = None
    label_mean: float | None = None


def quality_of_rows(scores: Floats, labels: Floats) -> Quality:
    """Exact, from [n] scores and labels."""
    if len(scores) == 0:
        return Quality()
    bins = np.clip(np.floor(scores * CALIBRATION_BINS), 0, CALIBRATION_BINS - 1).astype(np.int64)
    positive = (labels > 0.5).astype(np.float64)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    ece = calibration_error(
        counts,
        np.bincount(bins, weights=positive, minlength=CALIBRATION_BINS),
        np.bincount(bins, weights=scores, minlength=CALIBRATION_BINS),
    )
    return Quality(
        len(scores),
        auc(scores, labels),
        log_loss(scores, labels),
        brier(scores, labels),
        ece,
        float(positive.mean()),
    )


def quality_of_window(window: Window) -> Quality:
    """From counts: all but the AUC to the fixed-point resolution of 2**-32, the AUC within `auc_error_bound`."""
    n = window.labelled
    if n == 0:
        return Quality()
    positives, negatives = window.positives, window.negatives
    by_ten = SCORE_BINS // CALIBRATION_BINS
    counts = (positives + negatives).reshape(CALIBRATION_BINS, by_ten).sum(axis=1)
    sums = np.array([window.total(Sums.CALIBRATION, b) for b in range(CALIBRATION_BINS)])
    return Quality(
        labelled=n,
        auc=auc_from_counts(positives, negatives),
        log_loss=window.total(Sums.LOG_LOSS) / n,
        brier=window.total(Sums.BRIER) / n,
        calibration_error=calibration_error(
            counts, positives.reshape(CALIBRATION_BINS, by_ten).sum(axis=1), sums
        ),
        label_mean=window.total(Sums.LABEL) / n,
    )


def with_kept_rows(quality: Quality, scores: Floats, labels: Floats) -> Quality:
    """The AUC from the rows themselves, if all that were labelled are still kept: [n] scores and labels."""
    if len(scores) == 0 or len(scores) != quality.labelled:
        return quality
    return replace(quality, auc=auc(scores, labels))


@dataclass(frozen=True)
class QualityReference:
    """What the version promised on held-out rows; None: not known."""

    auc: float | None = None
    log_loss: float | None = None
    label_mean: float | None = None


def judge_concept(
    quality: Quality, reference: QualityReference, policy: MonitorPolicy
) -> tuple[Verdict, str]:
    """Concept drift: does the model rank or calibrate worse than it promised?"""
    if quality.labelled < policy.min_labels:
        return Verdict.INSUFFICIENT, f"{quality.labelled} labels, {policy.min_labels} needed"
    found = []
    if (
        quality.auc is not None
        and reference.auc is not None
        and quality.auc < reference.auc - policy.auc_drop
    ):
        found.append(f"AUC {quality.auc:.3f} against {reference.auc:.3f}")
    if (
        quality.log_loss is not None
        and reference.log_loss
        and quality.log_loss > reference.log_loss * policy.log_loss_ratio
    ):
        found.append(f"log-loss {quality.log_loss:.3f} against {reference.log_loss:.3f}")
    if found:
        return Verdict.DRIFT, " and ".join(found) + f" on {quality.labelled} labels"
    if reference.auc is None and reference.log_loss is None:
        return Verdict.INSUFFICIENT, "the version carries no held-out AUC or log-loss to compare with"
    return Verdict.NO_DRIFT, f"as promised on {quality.labelled} labels"


def judge_labels(quality: Quality, reference: QualityReference, policy: MonitorPolicy) -> tuple[Verdict, str]:
    """Label drift: has the share of positives moved, by an effect and beyond chance (binomial z >= 3)?"""
    if quality.labelled < policy.min_labels or quality.label_mean is None:
        return Verdict.INSUFFICIENT, f"{quality.labelled} labels, {policy.min_labels} needed"
    if reference.label_mean is None:
        return Verdict.INSUFFICIENT, "no reference share of positives"
    shift = quality.label_mean - reference.label_mean
    spread = np.sqrt(max(reference.label_mean * (1 - reference.label_mean), 1e-12) / quality.labelled)
    numbers = f"share of positives {quality.label_mean:.3f} against {reference.label_mean:.3f}"
    if abs(shift) >= policy.label_shift and abs(shift) / spread >= 3.0:
        return Verdict.DRIFT, numbers
    return Verdict.NO_DRIFT, numbers
