"""Features that are vectors, which are counted by their projections (`flywheel_common.projections`).

Each projection is a numeric column of the reference with bins and sums of its own, in the training set's
quantiles. A vector that is null, not finite or of another size than in the training set is so in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flywheel_common.arrays import Array, Mask
from flywheel_common.projections import project
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins


def projection_name(vector: str, axis: int) -> str:
    """The name of a projection's column. No feature has a space in its name."""
    return f"{vector} projection {axis + 1}"


def by_feature(features: Sequence[FeatureBins]) -> dict[str, list[FeatureBins]]:
    """Feature → its bins: one, or those of each projection of a vector."""
    found: dict[str, list[FeatureBins]] = {}
    for bins in features:
        found.setdefault(bins.reference.feature, []).append(bins)
    return found


def with_projections(
    features: Mapping[str, tuple[Array, Mask]], projections: Sequence[ColumnReference]
) -> Mapping[str, tuple[Array, Mask]]:
    """The columns of some rows, with these projections of their vectors."""
    if not projections:
        return features
    found = dict(features)
    projected: dict[str, Array | None] = {}
    for one in projections:
        if one.vector not in features:
            continue
        values, valid = features[one.vector]
        if one.vector not in projected:
            fits = values.ndim == 2 and values.shape[1] == one.width and values.dtype.kind == "f"
            projected[one.vector] = project(values, one.vector) if fits else None
        axes = projected[one.vector]
        # Columns with two dimensions are malformed to numeric bins.
        found[one.name] = (np.empty((len(values), 0)) if axes is None else axes[:, one.axis], valid)
    return found
