"""Two-sample chi-square test of homogeneity (a 2 x B contingency table, Pearson 1911).

A goodness-of-fit test against the reference's shares would treat the reference as exact and reject too often;
the contingency form treats both sides as samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc

from flywheel_common.arrays import Floats, Ints

MIN_EXPECTED = 5.0
"""Bins with a smaller expected count on either side are pooled (Cochran 1954)."""


def pooled(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Both arrays of counts [..., B], with the bins of a small expected count merged into a last one: [..., B
    + 1]. If that bin is small too, it is merged into the smallest other one: a few rows must not decide. The
    places of merged bins are empty. Where a side has no rows, none is merged."""
    total = a + b
    n, m = a.sum(axis=-1, keepdims=True), b.sum(axis=-1, keepdims=True)
    least = MIN_EXPECTED * (n + m) / np.maximum(np.minimum(n, m), 1)
    small = (total < least) & (n > 0) & (m > 0)
    x, y = (
        np.concatenate(
            [np.where(small, 0, side), np.where(small, side, 0).sum(axis=-1, keepdims=True)], axis=-1
        )
        for side in (a, b)
    )
    too_small = (x[..., -1:] + y[..., -1:] < least) & ~small.all(axis=-1, keepdims=True)
    smallest = np.where(small, np.iinfo(np.int64).max, total).argmin(axis=-1, keepdims=True)
    into = too_small & (np.arange(total.shape[-1]) == smallest)
    for side in (x, y):
        side[..., :-1] += into * side[..., -1:]
        side[..., -1:] *= ~too_small
    return x, y


@dataclass(frozen=True)
class ChiSquare:
    """[...] statistics, degrees of freedom, p-values, and Cramér's V: the square root of statistic / (n + m),
    0 to 1 (Cramér, Mathematical Methods of Statistics, 1946; a table of two rows)."""

    statistic: Floats
    degrees: Ints
    p_value: Floats
    cramers_v: Floats


def chi_square(
    a: Ints, b: Ints, effect: Floats | float = 1.0, reference_effect: Floats | float = 1.0
) -> ChiSquare:
    """The test of two arrays of counts [..., B]; p 1 where a side or all but one bin is empty. `effect` [...]
    is the design effect of `a`, `reference_effect` that of `b`: they divide the statistic that the p-value is
    taken from, as the variance of the difference grows from 1/n + 1/m to effect/n + reference_effect/m (Rao
    and Scott 1984, first order)."""
    both = a + b
    bins = np.count_nonzero(both, axis=-1)
    n, m = a.sum(axis=-1), b.sum(axis=-1)
    tested = (n > 0) & (m > 0) & (bins > 1)
    n, m = np.maximum(n, 1), np.maximum(m, 1)
    share = both / (n + m)[..., None]
    statistic = sum(_squares(side, rows[..., None] * share) for side, rows in ((a, n), (b, m)))
    statistic = np.where(tested, statistic, 0.0)
    degrees = np.where(tested, bins - 1, 0)
    inflated = (effect / n + reference_effect / m) / (1 / n + 1 / m)
    p_value = np.where(tested, chdtrc(np.maximum(degrees, 1), statistic / inflated), 1.0)
    return ChiSquare(statistic, degrees, p_value, np.sqrt(statistic / (n + m)))


def _squares(counts: Ints, expected: Floats) -> Floats:
    """[...] Pearson's sum over the bins with expected rows."""
    return ((counts - expected) ** 2 / np.where(expected > 0, expected, 1.0)).sum(axis=-1)
