"""Two-sample chi-square test of homogeneity (a 2 x B contingency table, Pearson 1911).

A goodness-of-fit test against the reference's shares would treat the reference as exact and reject too often;
the contingency form treats both sides as samples.
"""

from __future__ import annotations

import numpy as np
from scipy.special import chdtrc

from flywheel_common.arrays import Ints

MIN_EXPECTED = 5.0
"""Bins with a smaller expected count on either side are pooled (Cochran 1954)."""


def pooled(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Both vectors, with the bins of a small expected count merged into one last bin."""
    total = a + b
    n, m = int(a.sum()), int(b.sum())
    if n == 0 or m == 0:
        return a, b
    small = total * (min(n, m) / (n + m)) < MIN_EXPECTED
    if not small.any():
        return a, b
    return np.append(a[~small], a[small].sum()), np.append(b[~small], b[small].sum())


def chi_square(a: Ints, b: Ints) -> tuple[float, float]:
    """(statistic, p-value) of two count vectors [B]; (0, 1) when a side or all but one bin is empty."""
    used = (a + b) > 0
    x, y = a[used].astype(np.float64), b[used].astype(np.float64)
    n, m = x.sum(), y.sum()
    if n == 0 or m == 0 or len(x) < 2:
        return 0.0, 1.0
    share = (x + y) / (n + m)
    statistic = float(np.sum((x - n * share) ** 2 / (n * share)) + np.sum((y - m * share) ** 2 / (m * share)))
    return statistic, float(chdtrc(len(x) - 1, statistic))
