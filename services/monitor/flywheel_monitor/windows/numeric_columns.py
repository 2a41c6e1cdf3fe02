"""Bins and standardized values of all numeric features of a model version at once.

Equal to `FeatureBins.assign` and `FeatureBins.standardized` of each feature, in one matrix [features,
rows]: the cost of a call of numpy is paid once for all features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flywheel_common.arrays import Array, Floats, Ints, Mask
from flywheel_monitor.windows.bins import FeatureBins, Special

MOST_EDGES = 64
"""Edges up to which comparing with each of them is faster than a search."""


def is_number(values: Array) -> bool:
    """Whether a column can be counted in numeric bins."""
    return values.ndim == 1 and values.dtype.kind in "biuf"


@dataclass(frozen=True)
class NumericColumns:
    """Numeric features, in the order of the rows of the matrices."""

    features: tuple[FeatureBins, ...]

    def only(self, names: Sequence[str]) -> NumericColumns:
        """Those of these names."""
        wanted = set(names)
        return NumericColumns(tuple(f for f in self.features if f.name in wanted))

    def _column(self, values: Sequence[float]) -> Floats:
        return np.array(values, np.float64)[:, None]

    @cached_property
    def _edges(self) -> Floats:
        """[edges, features, 1], filled up with infinity."""
        most = max(len(f.reference.edges) for f in self.features)
        found = np.full((most, len(self.features), 1), np.inf)
        for i, f in enumerate(self.features):
            found[: len(f.reference.edges), i, 0] = f.reference.edges
        return found

    @cached_property
    def _ranges(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Ends of the references' ranges, and those beyond which a value is FAR, [features, 1] each."""
        far = [f.far for f in self.features]
        return (
            self._column([f.reference.minimum for f in self.features]),
            self._column([f.reference.maximum for f in self.features]),
            self._column([low for low, _ in far]),
            self._column([high for _, high in far]),
        )

    @cached_property
    def _regular(self) -> Ints:
        return np.array([f.regular for f in self.features], np.int64)

    @cached_property
    def _moments(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Mean and standard deviation of the references, and the standardized range, [features, 1] each; the
        deviation is infinite for a constant reference."""
        spread = [f.reference.stddev if f.reference.stddev > 0 else np.inf for f in self.features]
        ranges = [f.standardized_range for f in self.features]
        return (
            self._column([f.reference.mean for f in self.features]),
            self._column(spread),
            self._column([low for low, _ in ranges]),
            self._column([high for _, high in ranges]),
        )

    def assign(self, x: Floats, valid: Mask) -> Ints:
        """[features, rows] bin of each value."""
        if len(self._edges) <= MOST_EDGES:
            # Right-closed bins: the number of edges below the value.
            small, above = np.zeros(x.shape, np.uint8), np.empty(x.shape, np.bool_)
            for edge in self._edges:
                np.greater(x, edge, out=above)
                small += above.view(np.uint8)
            bins = small.astype(np.int64)
        else:
            found = [np.searchsorted(f.reference.edges, v) for f, v in zip(self.features, x, strict=True)]
            bins = np.stack(found).astype(np.int64, copy=False)
        low, high, far_low, far_high = self._ranges
        row, at = np.nonzero(~((x >= low) & (x <= high)))
        if len(at):
            y = x[row, at]
            kinds = np.where(y < low[row, 0], int(Special.BELOW), int(Special.ABOVE))
            kinds[(y < far_low[row, 0]) | (y > far_high[row, 0])] = Special.FAR
            kinds[~np.isfinite(y)] = Special.NON_FINITE
            bins[row, at] = self._regular[row] + kinds
        if not valid.all():
            row, at = np.nonzero(~valid)
            bins[row, at] = self._regular[row] + Special.NULL
        return bins

    def standardized(self, x: Floats, counted: Mask) -> tuple[Floats, Floats]:
        """[features, rows] (x - reference mean) / reference stddev, limited to ±1e6, and the same limited
        to the range of the reference; 0 where x is not finite or not `counted`, and for a constant
        reference."""
        mean, spread, low, high = self._moments
        with np.errstate(invalid="ignore", over="ignore"):
            raw: Floats = np.subtract(x, mean)
            raw /= spread
            raw.clip(-1e6, 1e6, out=raw)
        shown = counted & np.isfinite(x) & np.isfinite(spread)
        if not shown.all():
            raw[~shown] = 0.0
        clipped: Floats = raw.clip(low, high)
        if ((low > 0) | (high < 0)).any():
            clipped[raw == 0.0] = 0.0
        return raw, clipped
