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


def design_effect(blocks: Ints, rows: Ints) -> Floats:
    """Upper confidence limits [...] of the design effect, at least 1, of the shares of J events, in the order
    of time: an event happened in blocks [B, ..., J] of rows [B, ...]. 1 with fewer than MIN_BLOCKS blocks
    that have rows, and if every event happened always or never."""
    n = np.maximum(rows.sum(axis=0), 1)
    share = blocks.sum(axis=0) / n[..., None]
    independent = (share * (1 - share)).sum(axis=-1) / n
    return _inflation(blocks - rows[..., None] * share, rows, independent)


def of_mean(sums: Floats, rows: Ints, stddev: float) -> float:
    """The design effect of a mean, from the sums [B] of values with this standard deviation in blocks of
    rows [B]."""
    n = max(1, int(rows.sum()))
    excess = sums - rows * (sums.sum() / n)
    return float(_inflation(excess[:, None], rows, np.asarray(stddev * stddev / n)))


def _inflation(excess: Floats, rows: Ints, independent: Floats) -> Floats:
    """The variances [...] of shares or means over those of `independent` rows, at the upper limit. `excess`
    [B, ..., J] is what each block has more than its rows times the share or mean of the window: a ratio
    estimator (Cochran, Sampling Techniques, 1977, chapter 6). Blocks without rows are left out."""
    used = rows > 0
    count = np.count_nonzero(used, axis=0)
    if not used.all():
        # A block without rows repeats the one before it (the first ones: the first with rows), so that it
        # adds no step.
        numbers = np.arange(len(rows)).reshape(-1, *[1] * (rows.ndim - 1))
        last = np.maximum.accumulate(np.where(used, numbers, used.argmax(axis=0)), axis=0)
        excess = np.take_along_axis(excess, last[..., None], axis=0)
    steps = np.diff(excess, axis=0)
    n = np.maximum(rows.sum(axis=0), 1).astype(np.float64)
    squares = np.einsum("b...j,b...j->...", steps, steps)
    known = (count >= MIN_BLOCKS) & (independent > 0)
    count = np.maximum(count, MIN_BLOCKS)
    variance = squares / 2 * count / (count - 1) / (n * n)
    degrees = 2 / 3 * (count - 1)
    limit = variance / np.where(known, independent, 1.0) * degrees / chdtri(degrees, CONFIDENCE)
    return np.where(known, np.maximum(1.0, limit), 1.0)


def of_order(blocks: Ints) -> Floats:
    """The design effects [...] of the empirical distribution function, from counts [B, ..., J] of ordered
    bins."""
    return design_effect(np.cumsum(blocks, axis=-1)[..., :-1], blocks.sum(axis=-1))


def of_shares(blocks: Ints) -> Floats:
    """The design effects [...] of the shares of unordered bins, from their counts [B, ..., J]."""
    return design_effect(blocks, blocks.sum(axis=-1))
