"""The terms of the losses, row by row, by kind of output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_common.probability import SMALLEST_PROBABILITY
from flywheel_common.signature import OutputKind
from flywheel_monitor.windows.output import LARGEST_SCORE, Output


@dataclass(frozen=True)
class LossTerms:
    """Of n labelled rows: which are positive (`windows.layout`), the bin that they count in, and their
    terms."""

    positive: Mask
    bins: Ints
    loss: Floats
    brier: Floats
    absolute_error: Floats
    label: Floats


def is_positive(labels: Floats) -> Mask:
    """[n] rows of the positive class: labels above 0.5."""
    return labels > 0.5


def log_loss_terms(scores: Floats, labels: Floats) -> Floats:
    """[n] -ln p(label), probabilities clipped to SMALLEST_PROBABILITY and 1 less that."""
    p = np.clip(scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.where(is_positive(labels), -np.log(p), -np.log1p(-p))


def brier_terms(scores: Floats, labels: Floats) -> Floats:
    """[n] squared error of the probability."""
    squared: Floats = (scores - is_positive(labels)) ** 2
    return squared


def loss_terms(output: Output, scores: Floats, outputs: Floats, labels: Floats) -> LossTerms:
    """The terms of n labelled rows with usable scores."""
    if output.kind is OutputKind.MULTICLASS:
        return _class_terms(output, scores, outputs, labels.astype(np.int64))
    if output.kind is OutputKind.REGRESSION:
        error = scores - labels
        return LossTerms(
            error > 0, output.score_bins(labels), error**2, np.zeros(len(error)), np.abs(error), labels
        )
    positive = is_positive(labels)
    return LossTerms(
        positive,
        output.score_bins(scores),
        log_loss_terms(scores, labels),
        brier_terms(scores, labels),
        np.abs(scores - positive),
        positive.astype(np.float64),
    )


def _class_terms(output: Output, scores: Floats, outputs: Floats, classes: Ints) -> LossTerms:
    """Multi-class log-loss -ln p(true class) and Brier score Σ_c (p_c - [c is true])²."""
    of_true = outputs[np.arange(len(classes)), classes]
    squares = (outputs * outputs).sum(axis=1) - of_true**2 + (1 - of_true) ** 2
    correct = outputs.argmax(axis=1) == classes
    loss = -np.log(np.clip(of_true, SMALLEST_PROBABILITY, 1.0))
    return LossTerms(
        correct, output.score_bins(scores), loss, squares, 1 - of_true, correct.astype(np.float64)
    )


def fits(output: Output, value: float, class_name: str) -> bool:
    """Whether a label can belong to a prediction with this output."""
    if output.kind is OutputKind.MULTICLASS:
        return output.class_index(class_name) >= 0
    if class_name or output.kind is OutputKind.VECTOR:
        return False
    if output.kind is OutputKind.BINARY:
        return value in (0.0, 1.0)
    return abs(value) <= LARGEST_SCORE


def as_number(output: Output, value: float, class_name: str) -> float:
    """The label as `LabelledRows` hold it; NaN if it does not fit the output."""
    if not fits(output, value, class_name):
        return np.nan
    return float(output.class_index(class_name)) if output.kind is OutputKind.MULTICLASS else value
