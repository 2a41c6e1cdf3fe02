"""Metrics of the three kinds of output over rows that are weighted anew for each bootstrap sample.

What does not depend on the weights (order, losses, decisions) is computed once. Labels and outputs are of the
same rows; a multi-class model needs only the summary of its probabilities that `MulticlassOutputs` has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_job.evaluation.metrics import ECE_BINS, EPSILON
from flywheel_job.evaluation.ranking import Ranking


class Outputs(Protocol):
    """The outputs of one model, with the labels of the rows."""

    def metrics(self, weights: Floats) -> dict[str, float]:
        """Metrics of the rows with these weights; NaN where one is not defined."""
        ...

    def take(self, rows: Ints) -> Self:
        """Some of the rows."""
        ...

    def __len__(self) -> int: ...


class BinaryOutputs:
    """Probabilities of the positive class, and decisions at a threshold."""

    def __init__(
        self, labels: Floats, scores: Floats, threshold: float | None, ranking: Ranking | None = None
    ) -> None:
        """Without a threshold no row is decided positive."""
        self.labels, self.scores, self.threshold = labels, scores, threshold
        self.ranking = ranking or Ranking(scores)
        p = np.clip(scores, EPSILON, 1 - EPSILON)
        self._loss = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
        self._bin = np.minimum((scores * ECE_BINS).astype(np.int64), ECE_BINS - 1)
        self._decided = (scores >= (np.nan if threshold is None else threshold)).astype(np.float64)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Ints) -> BinaryOutputs:
        return BinaryOutputs(self.labels[rows], self.scores[rows], self.threshold)

    def with_threshold(self, threshold: float) -> BinaryOutputs:
        """The same rows with decisions at another threshold."""
        return BinaryOutputs(self.labels, self.scores, threshold, self.ranking)

    def metrics(self, weights: Floats) -> dict[str, float]:
        total = weights.sum()
        if total == 0:
            return dict.fromkeys(BINARY_METRICS, float("nan"))
        share = weights / total
        mean = float(share @ self.scores)
        gap = np.bincount(self._bin, weights=share * (self.labels - self.scores), minlength=ECE_BINS)
        hits = float(share @ (self.labels * self._decided))
        decided, positive = float(share @ self._decided), float(share @ self.labels)
        return {
            "auc": self.ranking.auc(self.labels, share),
            "average_precision": self.ranking.average_precision(self.labels, share),
            "log_loss": float(share @ self._loss),
            "brier": float(share @ (self.scores - self.labels) ** 2),
            "ece": float(np.abs(gap).sum()),
            "precision": hits / decided if decided else 0.0,
            "recall": hits / positive if positive else 0.0,
            "f1": 2 * hits / (decided + positive) if decided + positive else 0.0,
            "accuracy": 1 - decided - positive + 2 * hits,
            "label_mean": positive,
            "score_mean": mean,
            "score_stddev": float(np.sqrt(share @ (self.scores - mean) ** 2)),
        }


BINARY_METRICS = (
    "auc",
    "average_precision",
    "log_loss",
    "brier",
    "ece",
    "precision",
    "recall",
    "f1",
    "accuracy",
    "label_mean",
    "score_mean",
    "score_stddev",
)


@dataclass(frozen=True)
class MulticlassOutputs:
    """For each row its label, the most probable class with its probability, the loss and the Brier score."""

    labels: Ints
    chosen: Ints
    confidence: Floats
    losses: Floats
    squares: Floats
    classes: int

    @classmethod
    def of(cls, labels: Ints, probabilities: Floats) -> Self:
        """The summary of probabilities `[rows, classes]`; labels are indices of their columns."""
        chosen = probabilities.argmax(axis=1)
        rows = np.arange(len(labels))
        of_label = probabilities[rows, labels]
        squares = (probabilities**2).sum(axis=1) - 2 * of_label + 1
        losses = -np.log(np.clip(of_label, EPSILON, 1.0))
        return cls(labels, chosen, probabilities[rows, chosen], losses, squares, probabilities.shape[1])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, which are not empty."""
        arrays = {name: np.concatenate([getattr(one, name) for one in parts]) for name in _PER_ROW}
        return cls(classes=parts[0].classes, **arrays)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Ints) -> Self:
        return replace(self, **{name: getattr(self, name)[rows] for name in _PER_ROW})

    def metrics(self, weights: Floats) -> dict[str, float]:
        total = weights.sum()
        if total == 0:
            return dict.fromkeys(MULTICLASS_METRICS, float("nan"))
        share = weights / total
        right = (self.chosen == self.labels).astype(np.float64)
        hits = np.bincount(self.labels, weights=share * right, minlength=self.classes)
        labelled = np.bincount(self.labels, weights=share, minlength=self.classes)
        decided = np.bincount(self.chosen, weights=share, minlength=self.classes)
        occurs = labelled > 0
        bins = np.minimum((self.confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
        gap = np.bincount(bins, weights=share * (right - self.confidence), minlength=ECE_BINS)
        return {
            "accuracy": float(share @ right),
            "log_loss": float(share @ self.losses),
            "brier": float(share @ self.squares),
            "ece": float(np.abs(gap).sum()),
            "macro_f1": float((2 * hits[occurs] / (labelled + decided)[occurs]).mean()),
            "macro_recall": float((hits[occurs] / labelled[occurs]).mean()),
        }


_PER_ROW = ("labels", "chosen", "confidence", "losses", "squares")
MULTICLASS_METRICS = ("accuracy", "log_loss", "brier", "ece", "macro_f1", "macro_recall")


@dataclass(frozen=True)
class RegressionOutputs:
    """Values, and what they should be."""

    labels: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Ints) -> Self:
        return replace(self, labels=self.labels[rows], values=self.values[rows])

    def metrics(self, weights: Floats) -> dict[str, float]:
        total = weights.sum()
        if total == 0:
            return dict.fromkeys(REGRESSION_METRICS, float("nan"))
        share = weights / total
        errors = self.values - self.labels
        squared = float(share @ errors**2)
        spread = float(share @ (self.labels - share @ self.labels) ** 2)
        return {
            "rmse": float(np.sqrt(squared)),
            "mae": float(share @ np.abs(errors)),
            "r2": 1 - squared / spread if spread else 0.0,
            "bias": float(share @ errors),
            "label_mean": float(share @ self.labels),
            "score_mean": float(share @ self.values),
        }


REGRESSION_METRICS = ("rmse", "mae", "r2", "bias", "label_mean", "score_mean")


def paired(model: Outputs, champion: Outputs, weights: Floats) -> Mapping[str, float]:
    """Metrics of both models on the same rows (`champion_` before those of the champion), and the
    differences model − champion (`difference_`)."""
    ours, theirs = model.metrics(weights), champion.metrics(weights)
    both = ours | {f"champion_{name}": value for name, value in theirs.items()}
    return both | {f"difference_{name}": value - theirs[name] for name, value in ours.items()}
