"""Random projections of vectors, by which the distributions of vectors are compared.

The distribution of a vector is determined by those of its projections, and one random direction tells two
distributions with all moments apart with probability 1 (Cuesta-Albertos, Fraiman and Ransford, "A sharp form
of the Cramér-Wold theorem", J. Theor. Probab. 20, 2007). A few directions are used, because with one alone
the power depends on its angle to the change.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from flywheel_common.arrays import Array, Floats

PROJECTIONS = 8
ROWS_AT_ONCE = 65_536
"""Vectors that are converted to float64 at a time."""


@lru_cache(maxsize=64)
def directions(seed: str, width: int) -> Floats:
    """[PROJECTIONS, width] unit vectors, uniform on the sphere, fixed by the seed: normal coordinates
    divided by their norm (Muller 1959)."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    normal = np.random.Generator(np.random.PCG64(number)).standard_normal((PROJECTIONS, width))
    found: Floats = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    found.flags.writeable = False
    return found


def project(vectors: Array, seed: str) -> Floats:
    """[n, PROJECTIONS] projections of [n, width] vectors; NaN where a value of the vector is not finite.

    They are rounded to float32: the last bits of a product of matrices depend on how many rows it has, and a
    vector of the training set must lie in the same bin whenever it is counted."""
    axes = directions(seed, vectors.shape[1]).T
    found = np.empty((len(vectors), PROJECTIONS))
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        part = vectors[start : start + ROWS_AT_ONCE].astype(np.float64, copy=False)
        with np.errstate(invalid="ignore", over="ignore"):
            projected = (part @ axes).astype(np.float32)
        projected[~np.isfinite(part).all(axis=1)] = np.nan
        found[start : start + ROWS_AT_ONCE] = projected
    return found
