"""Design effect of a window: how much more the shares of bins vary than those of independent rows.

Predictions that follow one another are often alike: one airport in a storm, one user who scrolls. n rows then
say as much as n / deff independent ones (Kish, Survey Sampling, 1965), and a test that takes them for
independent finds drift in every window.

The window is cut into blocks of consecutive rows. The variance of a share comes from the differences of
successive blocks (von Neumann, Ann. Math. Statist. 12, 1941), so that the time of day within the window does
not count as dependence. The design effect is the sum of these variances over the bins, divided by the sum of
the variances of independent rows: the first-order correction of Rao and Scott (Ann. Statist. 12, 1984).
"""

from __future__ import annotations

import numpy as np
from scipy.special import chdtri

from flywheel_common.arrays import Floats, Ints

MIN_BLOCKS = 8
"""With fewer blocks the design effect is unknown, and rows count as independent."""
CONFIDENCE = 0.9
"""The upper confidence limit of the estimate is used, because an estimate that is too low is a false alarm.
Successive differences of B blocks have about 2 (B - 1) / 3 degrees of freedom."""


def design_effect(blocks: Ints, rows: Ints) -> float:
    """Upper confidence limit of the design effect, at least 1, of the shares of J events, in the order of
    time: an event happened in blocks [B, J] of rows [B]. 1 with fewer than MIN_BLOCKS blocks, and if every
    event happened always or never."""
    used = rows > 0
    blocks, rows = blocks[used], rows[used]
    count, n = len(rows), float(rows.sum())
    if count < MIN_BLOCKS:
        return 1.0
    share: Floats = blocks.sum(axis=0) / n
    independent = float(np.sum(share * (1 - share))) / n
    if independent <= 0:
        return 1.0
    return _upper(_variance(blocks - rows[:, None] * share, n), independent, count)


def of_mean(sums: Floats, rows: Ints, stddev: float) -> float:
    """The design effect of a mean, from the sums [B] of values with this standard deviation in blocks of
    rows [B]."""
    used = rows > 0
    sums, rows = sums[used], rows[used]
    count, n = len(rows), float(rows.sum())
    if count < MIN_BLOCKS or not stddev > 0:
        return 1.0
    return _upper(_variance(sums - rows * (sums.sum() / n), n), stddev * stddev / n, count)


def _variance(excess: Floats, rows: float) -> float:
    """Sum of the variances of the shares or means, from what each block [B] or [B, J] has more than its rows
    times the window's share or mean: a ratio estimator (Cochran, Sampling Techniques, 1977, chapter 6)."""
    steps = np.diff(excess, axis=0)
    count = len(excess)
    return float(np.sum(steps * steps)) / 2 * count / (count - 1) / (rows * rows)


def _upper(variance: float, independent: float, count: int) -> float:
    degrees = 2 / 3 * (count - 1)
    return max(1.0, variance / independent * degrees / float(chdtri(degrees, CONFIDENCE)))


def of_order(blocks: Ints) -> float:
    """The design effect of the empirical distribution function, from the counts [B, J] of ordered bins."""
    return design_effect(np.cumsum(blocks, axis=1)[:, :-1], blocks.sum(axis=1))


def of_shares(blocks: Ints) -> float:
    """The design effect of the shares of unordered bins, from their counts [B, J]."""
    return design_effect(blocks, blocks.sum(axis=1))
