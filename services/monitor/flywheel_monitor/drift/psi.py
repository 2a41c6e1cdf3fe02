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


def psi(window: Ints, reference: Ints, smoothing: Smoothing = Smoothing.JEFFREYS) -> float:
    """PSI of two count vectors [B] over the same bins, dimensionless, natural logarithm. Bins empty on
    both sides are left out. 0 when either side has no rows."""
    if not window.any() or not reference.any():
        return 0.0
    _, p, q = shares(window, reference, smoothing)
    return float(np.sum((p - q) * np.log(p / q)))


def shares(
    window: Ints, reference: Ints, smoothing: Smoothing = Smoothing.JEFFREYS
) -> tuple[Mask, Floats, Floats]:
    """Which of the bins [B] have rows on a side, and the smoothed shares of these bins in two count vectors,
    neither of which is empty."""
    used = (window > 0) | (reference > 0)
    a, b = window[used].astype(np.float64), reference[used].astype(np.float64)
    n, m = a.sum(), b.sum()
    if smoothing is Smoothing.EPSILON:
        return used, np.maximum(a / n, EPSILON_SHARE), np.maximum(b / m, EPSILON_SHARE)
    size = len(a)
    return used, (a + PRIOR) / (n + PRIOR * size), (b + PRIOR) / (m + PRIOR * size)


def corrected(window: Ints, reference: Ints, effect: float = 1.0, reference_effect: float = 1.0) -> float:
    """PSI over the bins that are not sparse, less its expectation under no drift, not below 0. `effect` is
    the design effect of the window, `reference_effect` that of the reference."""
    a, b = pooled(window, reference)
    bins = int(np.count_nonzero((a > 0) | (b > 0)))
    n, m = float(a.sum()), float(b.sum())
    if n == 0 or m == 0:
        return 0.0
    return max(0.0, psi(a, b) - (bins - 1) * (effect / n + reference_effect / m))


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
    """The counts that PSI is computed from. Numeric: the reference's deciles, with what is below and above
    its range in the first and last one; a reference of one value keeps them apart. Categorical: the listed
    categories."""
    regular = counts[: bins.regular]
    if not bins.numeric:
        return regular
    below, above = (int(counts[bins.regular + s]) for s in (Special.BELOW, Special.ABOVE))
    deciles = summed(regular, decile_groups(bins.reference_counts[: bins.regular]))
    if len(deciles) == 1:
        return np.array([below, deciles[0], above], np.int64)
    deciles[0] += below
    deciles[-1] += above
    return deciles
