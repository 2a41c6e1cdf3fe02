"""Performance estimated from the scores alone: confidence-based performance estimation (CBPE).

If scores are calibrated, a prediction with score p is positive with probability p. Of n_i predictions with
score p_i, n_i p_i are then expected to be positive and n_i (1 - p_i) negative, and every figure follows from
these expected counts (NannyML, "How it works: confidence-based performance estimation"; Kivimäki, Białek,
Kuberski and Nurminen, "Performance estimation in binary classification using calibrated confidence", 2025):

    accuracy = Σ n_i max(p_i, 1 - p_i) / n               decision: p_i >= 0.5
    log-loss = Σ n_i H(p_i) / n                          H(p) = -p ln p - (1 - p) ln(1 - p)
    AUC      = P(score of a positive > score of a negative) + half of the ties, from the expected counts

BINARY: p_i is the middle of score bin i. A score lies at most 1/400 from it: the accuracy is wrong by at most
1/400, and the log-loss by at most H(1/400) = 0.018, which it is if all scores are 0 or 1.

MULTICLASS: the predicted class is right with its own probability, so that the accuracy is the mean of the
scores, which is known exactly. The log-loss is not estimated: the bins of the other classes' probabilities
are too wide for their entropy. REGRESSION has no estimate: a number does not say how wrong it is, and direct
loss estimation trains a second model of the loss on labelled rows with their features, which the monitor does
not keep.

Labels test the assumption. Given the scores, the number of right decisions and the log-loss of calibrated
predictions are sums of independent terms with known variances: p (1 - p), and p (1 - p) ln(p / (1 - p))²
(Spiegelhalter, "Probabilistic prediction in patient management", Statist. Med. 5, 1986, does the same for the
Brier score).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_common.signature import OutputKind
from flywheel_monitor.performance.quality import Quality, auc_from_counts
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.histograms import SCORE_BINS
from flywheel_monitor.windows.layout import Sums

MIDDLES: Floats = (np.arange(SCORE_BINS) + 0.5) / SCORE_BINS
ENTROPY: Floats = -MIDDLES * np.log(MIDDLES) - (1 - MIDDLES) * np.log1p(-MIDDLES)
RIGHT: Floats = np.maximum(MIDDLES, 1 - MIDDLES)
POSITIVE_FROM = SCORE_BINS // 2
"""The first bin whose decision is positive."""
SIGNIFICANT_Z = 3.0
ACCURACY_BIN_ERROR = 0.5 / SCORE_BINS
LOG_LOSS_BIN_ERROR = float(ENTROPY[0])
"""Largest errors that come from taking each score as the middle of its bin."""


@dataclass(frozen=True)
class Expected:
    """What calibrated scores promise; MULTICLASS has the accuracy alone."""

    accuracy: float
    auc: float | None = None
    log_loss: float | None = None


@dataclass(frozen=True)
class Estimate:
    """What the scores of a range promise, and those of its `labelled` predictions beside the realised
    accuracy; see `PerformanceEstimate` of the API."""

    expected: Expected
    labelled: Expected | None = None
    realised_accuracy: float | None = None
    warning: str = ""


def expected(scores: Ints) -> Expected | None:
    """The expected figures of predictions with this histogram [SCORE_BINS] of scores; None without any."""
    n = int(scores.sum())
    if n == 0:
        return None
    auc = auc_from_counts(scores * MIDDLES, scores * (1 - MIDDLES))
    assert auc is not None  # no middle is 0 or 1: both classes are expected
    return Expected(float(scores @ RIGHT) / n, auc, float(scores @ ENTROPY) / n)


def estimate_of(window: WindowCounts, quality: Quality) -> Estimate | None:
    """The estimate for a BINARY or MULTICLASS output with scores, compared with the realised quality of its
    labels."""
    match window.layout.output.kind:
        case OutputKind.BINARY:
            promised = expected(window.scores)
            labelled = expected(window.positives + window.negatives)
        case OutputKind.MULTICLASS:
            promised = _of_classes(window.total(Sums.SCORE), window.scored)
            labelled = _of_classes(window.total(Sums.LABELLED_SCORE), window.labelled)
        case _:
            return None
    if promised is None:
        return None
    if labelled is None or quality.labelled == 0:
        return Estimate(promised)
    accuracy = quality.accuracy
    if accuracy is None:
        right = window.positives[POSITIVE_FROM:].sum() + window.negatives[:POSITIVE_FROM].sum()
        accuracy = int(right) / window.labelled
    return Estimate(promised, labelled, accuracy, warning(window, labelled, accuracy, quality))


def _of_classes(total: float, rows: int) -> Expected | None:
    """The expected figures of rows whose predicted classes have this sum of probabilities."""
    return Expected(min(1.0, total / rows)) if rows else None


def warning(window: WindowCounts, promised: Expected, accuracy: float, quality: Quality) -> str:
    """How far the labels of a window are worse than promised; "" if chance or the width of the bins explains
    it. Dependent labels count as `Quality.effective_labels`."""
    rows = window.positives + window.negatives
    n = float(rows.sum())
    chance = rows * MIDDLES * (1 - MIDDLES)
    errors = SIGNIFICANT_Z * math.sqrt(n / (quality.effective_labels or n)) / n
    found = []
    # The accuracy of MULTICLASS comes from the scores themselves.
    by_bins = 0.0 if promised.log_loss is None else ACCURACY_BIN_ERROR
    if promised.accuracy - accuracy > by_bins + errors * math.sqrt(float(chance.sum())):
        found.append(f"accuracy {accuracy:.4f}, {promised.accuracy:.4f} estimated")
    if promised.log_loss is not None and quality.log_loss is not None:
        loss_error = errors * math.sqrt(float(chance @ np.log(MIDDLES / (1 - MIDDLES)) ** 2))
        if quality.log_loss - promised.log_loss > LOG_LOSS_BIN_ERROR + loss_error:
            found.append(f"log-loss {quality.log_loss:.4f}, {promised.log_loss:.4f} estimated")
    if not found:
        return ""
    if quality.auc is not None and promised.auc is not None:
        found.append(f"AUC {quality.auc:.4f}, {promised.auc:.4f} estimated")
    return f"the labels of {int(n)} predictions are worse than their scores promise: {'; '.join(found)}"


def estimate_from_json(stored: Mapping[str, Any] | None) -> Estimate | None:
    if stored is None:
        return None
    sides = {name: stored[name] for name in ("expected", "labelled")}
    found = {name: None if side is None else Expected(**side) for name, side in sides.items()}
    return Estimate(**{**stored, **found})
