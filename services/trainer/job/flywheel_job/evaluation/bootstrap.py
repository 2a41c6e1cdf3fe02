"""Confidence intervals of metrics by the percentile bootstrap over rows.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Rows are drawn with replacement; a
sample is represented by the number of times that each row was drawn, which multiplies the row's weight. All
metrics of one sample are computed on the same rows, so the interval of a difference of two models is that of
the paired difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Floats

Statistics = Callable[[Floats], Mapping[str, float]]
"""Number of draws of each row → metrics."""


@dataclass(frozen=True)
class Estimate:
    """A metric of the rows, and its confidence interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def bootstrap(
    statistics: Statistics,
    rows: int,
    *,
    samples: int,
    confidence: float,
    rng: np.random.Generator,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Estimate]:
    """An estimate of every metric. `progress` is called after every sample with its number.

    Samples in which a metric is not finite, such as the AUC without a positive row, are left out of its
    interval. Memory: `samples` numbers per metric, and a few arrays of `rows` numbers.
    """
    values = statistics(np.ones(rows))
    drawn = {name: np.empty(samples) for name in values}
    for number in range(samples):
        counts = np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(np.float64)
        found = statistics(counts)
        for name, column in drawn.items():
            column[number] = found[name]
        progress(number + 1)
    tail = 100 * (1 - confidence) / 2
    return {name: _estimate(values[name], column, tail) for name, column in drawn.items()}


def _estimate(value: float, drawn: Floats, tail: float) -> Estimate:
    finite = drawn[np.isfinite(drawn)]
    if not len(finite) or not np.isfinite(value):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))
