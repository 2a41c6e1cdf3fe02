"""Population stability index.

psi = Σ (p_i - q_i) ln(p_i / q_i), p the window's and q the reference's share of bin i (Siddiqi, Credit Risk
Scorecards, 2006), with Jeffreys' prior: share = (count + 0.5) / (n + 0.5 B). Without drift its expectation is
about (B - 1)(1/n + 1/m) (Yurdakul, Statistical Properties of Population Stability Index, 2018), which is
subtracted.
"""

from __future__ import annotations

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.windows.bins import FeatureBins, Special

PRIOR = 0.5
DECILES = 10


def psi(window: Ints, reference: Ints) -> float:
    """PSI of two count vectors [B] over the same bins, dimensionless, natural logarithm. Bins empty on
    both sides are left out. 0 when either side has no rows."""
    used = (window > 0) | (reference > 0)
    a, b = window[used].astype(np.float64), reference[used].astype(np.float64)
    n, m = a.sum(), b.sum()
    if n == 0 or m == 0:
        return 0.0
    p = (a + PRIOR) / (n + PRIOR * len(a))
    q = (b + PRIOR) / (m + PRIOR * len(b))
    return float(np.sum((p - q) * np.log(p / q)))


def corrected(value: float, window: Ints, reference: Ints) -> float:
    """`value` less its expectation under no drift, not below 0."""
    bins = int(np.count_nonzero((window > 0) | (reference > 0)))
    n, m = float(window.sum()), float(reference.sum())
    if n == 0 or m == 0:
        return 0.0
    return max(0.0, value - (bins - 1) * (1 / n + 1 / m))


def decile_groups(reference: Ints, groups: int = DECILES) -> Ints:
    """[B] group of each bin: neighbouring bins merged so that each group has about 1/groups of the
    reference."""
    total = int(reference.sum())
    if total == 0:
        return np.zeros(len(reference), np.int64)
    middle = np.cumsum(reference) - reference / 2
    group = np.minimum((middle * groups / total).astype(np.int64), groups - 1)
    return np.unique(group, return_inverse=True)[1].astype(np.int64)


def grouped(window: Ints, reference: Ints) -> float:
    """Bias-corrected PSI of two histograms [B] over the reference's deciles."""
    groups = decile_groups(reference)
    size = int(groups.max(initial=0)) + 1
    a, b = (
        np.rint(np.bincount(groups, weights=c.astype(np.float64), minlength=size)).astype(np.int64)
        for c in (window, reference)
    )
    return corrected(psi(a, b), a, b)


def by_class(window: Ints, reference: Ints) -> float:
    """Bias-corrected PSI of the rows of each class."""
    return corrected(psi(window, reference), window, reference)


def coarse(bins: FeatureBins, counts: Ints) -> Ints:
    """The counts that PSI is computed from. Numeric: reference deciles, then one bin each for null,
    non-finite, below, above (with far), unseen and malformed values. Categorical: all bins."""
    if not bins.numeric:
        return counts
    groups = decile_groups(bins.reference_counts[: bins.regular])
    deciles = np.bincount(
        groups, weights=counts[: bins.regular].astype(np.float64), minlength=int(groups.max(initial=0)) + 1
    )
    special = counts[bins.regular :].copy()
    # FAR does not say on which side a value is; together with one side it still shows in the PSI.
    special[Special.ABOVE] += special[Special.FAR]
    special[Special.FAR] = 0
    return np.concatenate([np.rint(deciles).astype(np.int64), special])
