"""Two-sample chi-square test of homogeneity (a 2 x B contingency table, Pearson 1911).

A goodness-of-fit test against the reference's shares would treat the reference as exact and reject too often;
the contingency form treats both sides as samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from flywheel_common.arrays import Ints

MIN_EXPECTED = 5.0
"""Bins with a smaller expected count on either side are pooled (Cochran 1954)."""


def pooled(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Both vectors, with the bins of a small expected count merged into one last bin. If that bin is small
    too, it is merged into the smallest other one: a few rows must not decide."""
    total = a + b
    n, m = int(a.sum()), int(b.sum())
    if n == 0 or m == 0:
        return a, b
    least = MIN_EXPECTED * (n + m) / min(n, m)
    small = total < least
    if not small.any():
        return a, b
    x, y = np.append(a[~small], a[small].sum()), np.append(b[~small], b[small].sum())
    if x[-1] + y[-1] >= least or len(x) == 1:
        return x, y
    smallest = int(np.argmin((x + y)[:-1]))
    x[smallest] += x[-1]
    y[smallest] += y[-1]
    return x[:-1], y[:-1]


@dataclass(frozen=True)
class ChiSquare:
    """Statistic, degrees of freedom, p-value, and Cramér's V: the square root of statistic / (n + m), 0 to 1
    (Cramér, Mathematical Methods of Statistics, 1946; a table of two rows)."""

    statistic: float = 0.0
    degrees: int = 0
    p_value: float = 1.0
    cramers_v: float = 0.0


def chi_square(a: Ints, b: Ints, effect: float = 1.0, reference_effect: float = 1.0) -> ChiSquare:
    """The test of two count vectors [B]; p 1 when a side or all but one bin is empty. `effect` is the design
    effect of `a`, `reference_effect` that of `b`: they divide the statistic that the p-value is taken from,
    as the variance of the difference grows from 1/n + 1/m to effect/n + reference_effect/m (Rao and Scott
    1984, first order)."""
    used = (a + b) > 0
    x, y = a[used].astype(np.float64), b[used].astype(np.float64)
    n, m = x.sum(), y.sum()
    if n == 0 or m == 0 or len(x) < 2:
        return ChiSquare()
    share = (x + y) / (n + m)
    statistic = float(np.sum((x - n * share) ** 2 / (n * share)) + np.sum((y - m * share) ** 2 / (m * share)))
    inflated = (effect / n + reference_effect / m) / (1 / n + 1 / m)
    return ChiSquare(
        statistic,
        len(x) - 1,
        float(chdtrc(len(x) - 1, statistic / inflated)),
        float(np.sqrt(statistic / (n + m))),
    )
