"""Distances between the binned distributions of a window and its reference.

They have no p-value: they say how far a distribution moved, not whether the move is chance.
"""

from __future__ import annotations

import numpy as np
from scipy.special import rel_entr

from flywheel_common.arrays import Floats, Ints


def jensen_shannon(a: Ints, b: Ints) -> float:
    """Jensen-Shannon distance of two count vectors [B], base 2, 0 to 1: the square root of the divergence
    (Endres and Schindelin, IEEE Trans. Inf. Theory 49, 2003). 0 when either side has no rows."""
    n, m = a.sum(), b.sum()
    if n == 0 or m == 0:
        return 0.0
    p, q = a / n, b / m
    middle = (p + q) / 2
    divergence = float(np.sum(rel_entr(p, middle) + rel_entr(q, middle))) / 2 / np.log(2)
    return float(np.sqrt(max(0.0, divergence)))


def wasserstein(a: Ints, b: Ints, positions: Floats) -> float:
    """First Wasserstein distance of two count vectors [B] whose rows lie at `positions` [B], ascending: the
    area between the distribution functions (Vallender, Theory Probab. Appl. 18, 1974), in the unit of the
    positions. For rows inside right-closed bins and the bins' right edges as positions, it is wrong by at
    most twice the mean width of the bins that hold the rows. 0 when either side has no rows."""
    n, m = a.sum(), b.sum()
    if n == 0 or m == 0:
        return 0.0
    apart = np.abs(np.cumsum(a) / n - np.cumsum(b) / m)
    return float(np.sum(apart[:-1] * np.diff(positions)))
