"""Metrics of the order of scores. The order is computed once and serves many weightings of the rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats


class Ranking:
    """Rows in descending order of their scores; rows of equal score form one group."""

    def __init__(self, scores: npt.ArrayLike) -> None:
        values = np.asarray(scores, dtype=np.float64)
        self._order = np.argsort(-values, kind="stable")
        ranked = values[self._order]
        self._starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        self.thresholds: Floats = ranked[self._starts]
        """The distinct scores, highest first."""

    def per_group(self, values: Floats) -> Floats:
        """Sum of a value per row over each group."""
        return np.add.reduceat(values[self._order], self._starts)

    def auc(self, labels: Floats, weights: Floats) -> float:
        """Area under the ROC curve: the share of pairs of a positive and a negative in the right order.

        A tie counts as half a pair; the weight of a pair is the product of both weights. NaN if a class has
        no weight.
        """
        positives = self.per_group(weights * labels)
        negatives = self.per_group(weights * (1 - labels))
        total = negatives.sum()
        pairs = positives.sum() * total
        if pairs == 0:
            return float("nan")
        below = total - np.cumsum(negatives) + negatives / 2
        return float((positives * below).sum() / pairs)

    def average_precision(self, labels: Floats, weights: Floats) -> float:
        """Sum over thresholds of precision × step of recall (no interpolation). NaN without positives."""
        positives = self.per_group(weights * labels)
        if positives.sum() == 0:
            return float("nan")
        decided = np.cumsum(self.per_group(weights))
        hits = np.cumsum(positives)
        precision = np.divide(hits, decided, out=np.zeros_like(hits), where=decided > 0)
        return float((precision * positives).sum() / positives.sum())
