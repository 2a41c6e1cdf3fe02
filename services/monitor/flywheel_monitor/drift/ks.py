"""Two-sample Kolmogorov-Smirnov test from binned counts.

D is taken at the bin edges, so it is a lower bound of the statistic over all values: it is too small by at
most the share of the largest bin. The p-value is the asymptotic one, Q(sqrt(n m / (n + m)) D) (Smirnov 1948;
scipy.special.kolmogorov), conservative for ties and bins.
"""

from __future__ import annotations

import numpy as np
from scipy.special import kolmogorov

from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.windows.bins import FeatureBins, Special


def ordered(bins: FeatureBins, counts: Ints) -> Ints:
    """Counts of the finite values in ascending order, in the last axis (`order`)."""
    return counts[..., order(bins)].astype(np.int64)


def order(bins: FeatureBins) -> Ints:
    """The bins of finite values in ascending order: below, the regular ones, above. FAR is left out, because
    it holds both sides."""
    below, above = bins.regular + Special.BELOW, bins.regular + Special.ABOVE
    return np.array([below, *range(bins.regular), above], np.int64)


def ks_statistic(a: Ints, b: Ints) -> Floats:
    """max |F_a - F_b| [...] of two arrays of counts [..., B] over the same ordered bins; 0 where either has
    no rows."""
    n, m = a.sum(axis=-1, keepdims=True), b.sum(axis=-1, keepdims=True)
    apart = np.abs(np.cumsum(a, axis=-1) / np.maximum(n, 1) - np.cumsum(b, axis=-1) / np.maximum(m, 1))
    return np.where((n > 0) & (m > 0), apart, 0.0).max(axis=-1)


def ks_p_value(statistic: Floats | float, n: Floats | float, m: Floats | float) -> Floats:
    """Asymptotic two-sided p-values of statistics, from samples of n and m values, [...] each; 1 where either
    sample is empty."""
    n, m = np.asarray(n, np.float64), np.asarray(m, np.float64)
    empty = (n <= 0) | (m <= 0)
    harmonic = n * m / np.where(empty, 1.0, n + m)
    return np.where(empty, 1.0, kolmogorov(np.sqrt(np.where(empty, 0.0, harmonic)) * statistic))
