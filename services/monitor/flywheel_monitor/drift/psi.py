"""Population stability index.

psi = Σ (p_i - q_i) ln(p_i / q_i), p the window's and q the reference's share of bin i (Siddiqi, Credit Risk
Scorecards, 2006). Bins: the deciles of the reference, open-ended and right-closed, or the categories. Nulls
and unseen categories are no bins: they have rates of their own. Without drift the expectation of the PSI is
about (B - 1)(1/n + 1/m) (Yurdakul, Statistical Properties of Population Stability Index, 2018), which is
subtracted; n is divided by the design effect of the window. Sparse bins are pooled first, because the
expectation holds for expected counts from about 5 on.
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_monitor.drift.chi_square import pooled
from flywheel_monitor.windows.bins import FeatureBins, Special

PRIOR = 0.5
DECILES = 10


class Smoothing(Enum):
    """How an empty bin gets a share above 0. JEFFREYS: (count + 0.5) / (n + 0.5 B), the Jeffreys prior.
    EPSILON: max(count / n, 1e-4), as most tools do; sparse bins then dominate the sum."""

    JEFFREYS = "jeffreys"
    EPSILON = "epsilon"


EPSILON_SHARE = 1e-4


def psi(window: Ints, reference: Ints, smoothing: Smoothing = Smoothing.JEFFREYS) -> Floats:
    """PSI [...] of two arrays of counts [..., B] over the same bins, dimensionless, natural logarithm. Bins
    empty on both sides are left out. 0 where either side has no rows."""
    _, p, q = shares(window, reference, smoothing)
    terms = ((p - q) * np.log(p / q)).sum(axis=-1)
    return np.where(window.any(axis=-1) & reference.any(axis=-1), terms, 0.0)


def shares(
    window: Ints, reference: Ints, smoothing: Smoothing = Smoothing.JEFFREYS
) -> tuple[Mask, Floats, Floats]:
    """Which of the bins [..., B] have rows on a side, and the smoothed shares of these bins in both arrays of
    counts. Where both sides are empty both shares are 1, so that the bin has no part in the PSI."""
    used = (window > 0) | (reference > 0)
    size = np.count_nonzero(used, axis=-1)[..., None]
    p, q = (_smoothed(side, size, smoothing) for side in (window, reference))
    return used, np.where(used, p, 1.0), np.where(used, q, 1.0)


def _smoothed(counts: Ints, size: Ints, smoothing: Smoothing) -> Floats:
    """The shares of counts [..., B] of which `size` [..., 1] bins are used; without rows they mean
    nothing."""
    n = counts.sum(axis=-1, keepdims=True)
    if smoothing is Smoothing.EPSILON:
        return np.maximum(counts / np.maximum(n, 1), EPSILON_SHARE)
    return (counts + PRIOR) / np.maximum(n + PRIOR * size, 1.0)


def corrected(
    window: Ints, reference: Ints, effect: Floats | float = 1.0, reference_effect: Floats | float = 1.0
) -> Floats:
    """PSI [...] over the bins [..., B] that are not sparse, less its expectation under no drift, not below 0.
    `effect` [...] is the design effect of the window, `reference_effect` that of the reference."""
    a, b = pooled(window, reference)
    bins = np.count_nonzero((a > 0) | (b > 0), axis=-1)
    n, m = a.sum(axis=-1), b.sum(axis=-1)
    by_chance = (bins - 1) * (effect / np.maximum(n, 1) + reference_effect / np.maximum(m, 1))
    return np.where((n > 0) & (m > 0), np.maximum(0.0, psi(a, b) - by_chance), 0.0)


def decile_groups(reference: Ints, groups: int = DECILES) -> Ints:
    """[B] group of each bin: neighbouring bins merged so that each group has about 1/groups of the
    reference."""
    total = int(reference.sum())
    if total == 0:
        return np.zeros(len(reference), np.int64)
    middle = np.cumsum(reference) - reference / 2
    group = np.minimum((middle * groups / total).astype(np.int64), groups - 1)
    return np.unique(group, return_inverse=True)[1].astype(np.int64)


def in_deciles(window: Ints, reference: Ints) -> tuple[Ints, Ints]:
    """Two histograms [B] over the reference's deciles."""
    groups = decile_groups(reference)
    return summed(window, groups), summed(reference, groups)


def summed(counts: Ints, groups: Ints) -> Ints:
    """The counts [B] added up by the group of each bin."""
    size = int(groups.max(initial=0)) + 1
    return np.rint(np.bincount(groups, weights=counts.astype(np.float64), minlength=size)).astype(np.int64)


def coarse(bins: FeatureBins, counts: Ints) -> Ints:
    """The counts that PSI is computed from, by `coarse_groups`."""
    groups, size = coarse_groups(bins)
    return summed(counts, groups)[:size]


def coarse_groups(bins: FeatureBins) -> tuple[Ints, int]:
    """[size] the group of each bin in the PSI, and the number of groups, which is that of the bins that have
    no part in it. Numeric: the reference's deciles, with what is below and above its range in the first and
    last one; a reference of one value keeps them apart. Categorical: the listed categories."""
    if not bins.numeric:
        return np.minimum(np.arange(bins.size), bins.regular), bins.regular
    deciles = decile_groups(bins.reference_counts[: bins.regular])
    last = int(deciles[-1])
    constant = last == 0
    size = 3 if constant else last + 1
    groups = np.full(bins.size, size, np.int64)
    groups[: bins.regular] = deciles + constant
    groups[bins.regular + Special.BELOW] = 0
    groups[bins.regular + Special.ABOVE] = size - 1
    return groups, size
