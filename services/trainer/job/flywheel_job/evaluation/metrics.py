"""Metrics of binary classification, shared by the training job and the pipeline's evaluate step.

Every function takes `labels` (0/1), `scores` (probabilities) and optionally `weights` (at least 0, their sum
above 0; by default all are 1), all one-dimensional and of equal length. A row of weight n counts as n rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats
from flywheel_common.probability import CALIBRATION_BINS, SMALLEST_PROBABILITY
from flywheel_job.evaluation.ranking import Ranking
from flywheel_job.evaluation.thresholds import by_f_beta

EPSILON = SMALLEST_PROBABILITY
ECE_BINS = CALIBRATION_BINS

Weights = npt.ArrayLike | None


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: Weights = None) -> float:
    """Area under the ROC curve: the share of pairs of a positive and a negative that are in the right order.

    A tie counts as half a pair; the weight of a pair is the product of both weights. NaN if a class has none.
    """
    y, s, w = _checked(labels, scores, weights)
    return Ranking(s).auc(y, w)


def log_loss(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: Weights = None) -> float:
    """Mean negative log-likelihood in nats."""
    y, s, w = _checked(labels, scores, weights)
    p = np.clip(s, EPSILON, 1 - EPSILON)
    return float(-np.average(y * np.log(p) + (1 - y) * np.log1p(-p), weights=w))


def brier(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: Weights = None) -> float:
    """Mean squared error of the probability."""
    y, s, w = _checked(labels, scores, weights)
    return float(np.average((s - y) ** 2, weights=w))


def ece(
    labels: npt.ArrayLike, scores: npt.ArrayLike, weights: Weights = None, *, bins: int = ECE_BINS
) -> float:
    """Expected calibration error over equal-width bins: Σ share·|mean label − mean score|
    (Guo et al. 2017)."""
    y, s, w = _checked(labels, scores, weights)
    index = np.minimum((s * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, weights=w * y, minlength=bins) - np.bincount(
        index, weights=w * s, minlength=bins
    )
    return float(np.abs(gap).sum() / w.sum())


def f1(labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float, weights: Weights = None) -> float:
    """F1 of the decision score >= threshold; 0 if no label and no decision is positive."""
    y, s, w = _checked(labels, scores, weights)
    decided = s >= threshold
    true_positives = float((w * y)[decided].sum())
    total = float(w[decided].sum() + (w * y).sum())
    return 2 * true_positives / total if total else 0.0


def best_threshold(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: Weights = None) -> float:
    """The score that maximizes F1 as the threshold (score >= threshold); the highest one of equals.

    0.5 if no label is positive.
    """
    y, s, w = _checked(labels, scores, weights)
    return by_f_beta(Ranking(s), y, w).threshold


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model over labelled rows; the field names are the metric keys of a model version."""

    auc: float
    log_loss: float
    brier: float
    ece: float
    rows: float
    """The number of rows; weights do not change it."""
    label_mean: float
    score_mean: float
    score_stddev: float

    def as_metrics(self) -> dict[str, float]:
        return asdict(self)


def evaluate(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: Weights = None) -> Evaluation:
    """All metrics.

    Raises ValueError if there are no rows, lengths differ, a score is not finite, or weights are not usable.
    """
    y, s, w = _checked(labels, scores, weights)
    mean = float(np.average(s, weights=w))
    return Evaluation(
        auc=auc(y, s, w),
        log_loss=log_loss(y, s, w),
        brier=brier(y, s, w),
        ece=ece(y, s, w),
        rows=float(len(y)),
        label_mean=float(np.average(y, weights=w)),
        score_mean=mean,
        score_stddev=float(np.sqrt(np.average((s - mean) ** 2, weights=w))),
    )


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: Weights) -> tuple[Floats, Floats, Floats]:
    y = np.asarray(labels, dtype=np.float64)
    s = np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != s.shape or len(y) == 0:
        raise ValueError(
            f"labels {y.shape} and scores {s.shape} must be equally long, one-dimensional and not empty"
        )
    if not np.isfinite(s).all():
        raise ValueError("scores must be finite")
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != y.shape or not (np.isfinite(w) & (w >= 0)).all() or not w.any():
        raise ValueError("weights must be one per row, finite and at least 0, and their sum above 0")
    # No metric depends on the scale, and products of weights of this scale neither vanish nor overflow.
    return y, s, w / w.max()
