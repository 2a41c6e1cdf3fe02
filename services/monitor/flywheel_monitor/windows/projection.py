"""Random projections of vectors, whose distributions stand for that of the vectors.

The distribution of a vector is determined by those of its projections, and one random direction tells two
distributions with all moments apart with probability 1 (Cuesta-Albertos, Fraiman and Ransford, "A sharp form
of the Cramér-Wold theorem", J. Theor. Probab. 20, 2007). A few directions are used, because with one alone
the power depends on its angle to the change.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from flywheel_common.arrays import Floats, Ints

PROJECTIONS = 8
STEPS = 20
"""Bins of a projection per unit of asinh((x - center) / scale): a width of 5 % of the scale at the center."""
REACH = 15 * STEPS
"""Bins on each side of the center: asinh of 1.6e6 is 15."""
PROJECTION_BINS = 2 * REACH + 1


@lru_cache(maxsize=64)
def directions(seed: str, width: int) -> Floats:
    """[PROJECTIONS, width] unit vectors, uniform on the sphere, fixed by the seed: normal coordinates
    divided by their norm (Muller 1959)."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    normal = np.random.Generator(np.random.PCG64(number)).standard_normal((PROJECTIONS, width))
    found: Floats = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    found.flags.writeable = False
    return found


@dataclass(frozen=True)
class Projections:
    """Projections of vectors of `width` values on the directions of `seed`; `centers` and `scales` place the
    bins of each."""

    seed: str
    width: int
    centers: tuple[float, ...]
    scales: tuple[float, ...]

    @classmethod
    def around(cls, seed: str, vectors: Floats) -> Projections:
        """With bins around the medians and interquartile ranges of the projections of these [n, width] first
        vectors, at least one."""
        low, middle, high = np.quantile(
            vectors @ directions(seed, vectors.shape[1]).T, [0.25, 0.5, 0.75], axis=0
        )
        spread = (high - low) / 1.349
        known = np.where(spread > 0, spread, np.abs(middle) / 100)
        scales = np.where(known > 0, known, 1.0)
        return cls(seed, vectors.shape[1], tuple(middle.tolist()), tuple(scales.tolist()))

    def bins(self, vectors: Floats) -> Ints:
        """[n, PROJECTIONS] bin of each projection of [n, width] finite vectors."""
        projected = vectors @ directions(self.seed, self.width).T
        steps = np.rint(np.arcsinh((projected - np.array(self.centers)) / np.array(self.scales)) * STEPS)
        return (np.clip(steps, -REACH, REACH) + REACH).astype(np.int64)
