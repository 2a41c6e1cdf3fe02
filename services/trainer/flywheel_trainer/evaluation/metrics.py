"""Metrics of binary classification, shared by the training job and the pipeline's evaluate step.

Every function takes `labels` (0/1) and `scores` (probabilities), both one-dimensional and of equal length.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats

EPSILON = 1e-7
"""Smallest distance of a probability from 0 and 1 in a logarithm; float32 scores resolve about 6e-8."""

ECE_BINS = 15


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic with mid-ranks for ties.

    NaN if a class is missing.
    """
    y, s = _checked(labels, scores)
    positives = float(y.sum())
    negatives = float(len(y)) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(s, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mid_ranks = last - (counts - 1) / 2.0
    return float(
        (mid_ranks[inverse][y == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    )


def log_loss(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Mean negative log-likelihood in nats."""
    y, s = _checked(labels, scores)
    p = np.clip(s, EPSILON, 1 - EPSILON)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def brier(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Mean squared error of the probability."""
    y, s = _checked(labels, scores)
    return float(np.mean((s - y) ** 2))


def ece(labels: npt.ArrayLike, scores: npt.ArrayLike, bins: int = ECE_BINS) -> float:
    """Expected calibration error over equal-width bins: Σ share·|mean label − mean score|
    (Guo et al. 2017)."""
    y, s = _checked(labels, scores)
    index = np.minimum((s * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, weights=y, minlength=bins) - np.bincount(index, weights=s, minlength=bins)
    return float(np.abs(gap).sum() / len(y))


def f1(labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float) -> float:
    """F1 of the decision score >= threshold; 0 if no label and no decision is positive."""
    y, s = _checked(labels, scores)
    decided = s >= threshold
    true_positives = float(y[decided].sum())
    total = float(decided.sum() + y.sum())
    return 2 * true_positives / total if total else 0.0


def best_threshold(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """The score that maximizes F1 as the threshold (score >= threshold); the highest one of equals.

    0.5 if no label is positive.
    """
    y, s = _checked(labels, scores)
    if y.sum() == 0:
        return 0.5
    order = np.argsort(-s, kind="stable")
    ranked = s[order]
    hits = np.cumsum(y[order])
    values = 2 * hits / (np.arange(1, len(y) + 1) + y.sum())
    last_of_value = np.append(ranked[1:] != ranked[:-1], True)
    return float(ranked[last_of_value][np.argmax(values[last_of_value])])


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model over labelled rows; the field names are the metric keys of a model version."""

    auc: float
    log_loss: float
    brier: float
    ece: float
    rows: float
    label_mean: float
    score_mean: float
    score_stddev: float

    def as_metrics(self) -> dict[str, float]:
        return asdict(self)


def evaluate(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Evaluation:
    """All metrics. Raises ValueError if there are no rows, lengths differ or a score is not finite."""
    y, s = _checked(labels, scores)
    return Evaluation(
        auc=auc(y, s),
        log_loss=log_loss(y, s),
        brier=brier(y, s),
        ece=ece(y, s),
        rows=float(len(y)),
        label_mean=float(y.mean()),
        score_mean=float(s.mean()),
        score_stddev=float(s.std()),
    )


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    y = np.asarray(labels, dtype=np.float64)
    s = np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != s.shape or len(y) == 0:
        raise ValueError(
            f"labels {y.shape} and scores {s.shape} must be equally long, one-dimensional and not empty"
        )
    if not np.isfinite(s).all():
        raise ValueError("scores must be finite")
    return y, s
