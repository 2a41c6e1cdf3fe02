"""Bins of the random projections of a VECTOR output (`flywheel_common.projections`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_common.projections import directions

STEPS = 20
"""Bins of a projection per unit of asinh((x - center) / scale): a width of 5 % of the scale at the center."""
REACH = 15 * STEPS
"""Bins on each side of the center: asinh of 1.6e6 is 15."""
PROJECTION_BINS = 2 * REACH + 1


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
