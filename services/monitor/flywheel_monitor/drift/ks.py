"""Two-sample Kolmogorov-Smirnov test from binned counts.

D is taken at the bin edges, so it is a lower bound of the statistic over all values: it is too small by at
most the share of the largest bin. The p-value is the asymptotic one, Q(sqrt(n m / (n + m)) D) (Smirnov 1948;
scipy.special.kolmogorov), conservative for ties and bins.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import kolmogorov

from flywheel_common.arrays import Ints
from flywheel_monitor.windows.bins import FeatureBins, Special


def ordered(bins: FeatureBins, counts: Ints) -> Ints:
    """Counts of the finite values in ascending order, in the last axis: below, regular bins, above. FAR is
    left out, because it holds both sides."""
    specials = counts[..., bins.regular :]
    below, above = specials[..., [Special.BELOW]], specials[..., [Special.ABOVE]]
    return np.concatenate([below, counts[..., : bins.regular], above], axis=-1).astype(np.int64)


def ks_statistic(a: Ints, b: Ints) -> float:
    """max |F_a - F_b| of two count vectors [B] over the same ordered bins; 0 when either has no rows."""
    n, m = int(a.sum()), int(b.sum())
    if n == 0 or m == 0:
        return 0.0
    return float(np.max(np.abs(np.cumsum(a) / n - np.cumsum(b) / m)))


def ks_p_value(statistic: float, n: float, m: float) -> float:
    """Asymptotic two-sided p-value; 1 when either sample is empty."""
    if n <= 0 or m <= 0:
        return 1.0
    return float(kolmogorov(math.sqrt(n * m / (n + m)) * statistic))
