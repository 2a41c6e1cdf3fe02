"""Distances between the binned distributions of a window and its reference.

They have no p-value: they say how far a distribution moved, not whether the move is chance.
"""

from __future__ import annotations

import numpy as np
from scipy.special import rel_entr

from flywheel_common.arrays import Floats, Ints


def jensen_shannon(a: Ints, b: Ints) -> Floats:
    """Jensen-Shannon distance [...] of two arrays of counts [..., B], base 2, 0 to 1: the square root of the
    divergence (Endres and Schindelin, IEEE Trans. Inf. Theory 49, 2003). 0 where either side has no rows."""
    n, m = a.sum(axis=-1, keepdims=True), b.sum(axis=-1, keepdims=True)
    p, q = a / np.maximum(n, 1), b / np.maximum(m, 1)
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=-1) / 2 / np.log(2)
    known = ((n > 0) & (m > 0))[..., 0]
    return np.sqrt(np.where(known, np.maximum(0.0, divergence), 0.0))


def wasserstein(a: Ints, b: Ints, positions: Floats) -> Floats:
    """First Wasserstein distance [...] of two arrays of counts [..., B] whose rows lie at `positions` [...,
    B], ascending: the area between the distribution functions (Vallender, Theory Probab. Appl. 18, 1974), in
    the unit of the positions. For rows inside right-closed bins and the bins' right edges as positions, it is
    wrong by at most twice the mean width of the bins that hold the rows. 0 where either side has no rows."""
    n, m = a.sum(axis=-1, keepdims=True), b.sum(axis=-1, keepdims=True)
    apart = np.abs(np.cumsum(a, axis=-1) / np.maximum(n, 1) - np.cumsum(b, axis=-1) / np.maximum(m, 1))
    area = (apart[..., :-1] * np.diff(positions, axis=-1)).sum(axis=-1)
    return np.where(((n > 0) & (m > 0))[..., 0], area, 0.0)
