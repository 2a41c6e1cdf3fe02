"""The terms of log-loss and Brier score, row by row."""

from __future__ import annotations

import numpy as np

from flywheel_common.arrays import Floats, Mask

SMALLEST_PROBABILITY = 1e-15


def is_positive(labels: Floats) -> Mask:
    """[n] rows of the positive class: labels above 0.5."""
    return labels > 0.5


def log_loss_terms(scores: Floats, labels: Floats) -> Floats:
    """[n] -ln p(label), probabilities clipped to [1e-15, 1 - 1e-15]."""
    p = np.clip(scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.where(is_positive(labels), -np.log(p), -np.log1p(-p))


def brier_terms(scores: Floats, labels: Floats) -> Floats:
    """[n] squared error of the probability."""
    squared: Floats = (scores - is_positive(labels)) ** 2
    return squared
