"""COUNT, SUM, MEAN, STD, MIN and MAX read from tiles.

All rows and aggregations are computed in a few calls of numpy: an online read has few rows, and then a call
costs as much as its arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_feature.definitions.model import AggregationFunction
from flywheel_feature.windows.tile_layout import TileLayout

F = AggregationFunction
MOMENTS = frozenset({F.COUNT, F.SUM, F.MEAN, F.STD, F.MIN, F.MAX})
_COMPONENT = {F.COUNT: "n", F.MIN: "min", F.MAX: "max"}
"""The component that a function reads; the other functions read the sum."""
_FOLDS: tuple[tuple[Any, float, tuple[str, ...]], ...] = (
    (np.add, 0.0, ("n", "sum")),
    (np.minimum, np.inf, ("min",)),
    (np.maximum, -np.inf, ("max",)),
)
"""Per function that combines components of several tiles: its value for no tile, and its components."""
FEW_TILES = 65_536
"""Up to this many tiles, all windows are folded in one call; above, one at a time to bound the memory."""


class Moments:
    """Reads the moments of one layout; the columns are looked up once, here."""

    def __init__(self, layout: TileLayout) -> None:
        own = [(i, a) for i, a in enumerate(layout.aggregations) if a.function in MOMENTS]
        self.places = [i for i, _ in own]
        """Places of these functions among the layout's aggregations: the columns of `values`, in order."""
        self._ages = np.array([w // layout.tile for w in layout.windows])
        self._folds = []
        folded: list[tuple[str, str]] = []
        for fold, empty, names in _FOLDS:
            components = [c for c in layout.column if c[1] in names]
            if components:
                here = slice(len(folded), len(folded) + len(components))
                self._folds.append((fold, empty, np.array([layout.column[c] for c in components]), here))
                folded += components
        self._width = len(folded)
        self._empty = np.array([empty for _, empty, columns, _ in self._folds for _ in columns])
        begins = [layout.windows.index(a.window) * len(folded) for _, a in own]
        values = [folded.index((a.field, _COMPONENT.get(a.function, "sum"))) for _, a in own]
        counts = [folded.index((a.field, "n")) for _, a in own]
        self._value = np.array([b + v for b, v in zip(begins, values, strict=True)], np.intp)
        self._count = np.array([b + c for b, c in zip(begins, counts, strict=True)], np.intp)
        self.counts = [p for p, (_, a) in enumerate(own) if a.function == F.COUNT]
        """Columns of `values` that are COUNT: integers."""
        self._means = [p for p, (_, a) in enumerate(own) if a.function == F.MEAN]
        self._deviations = [
            (p, a.window // layout.tile, layout.column[a.field, "m2"])
            for p, (_, a) in enumerate(own)
            if a.function == F.STD
        ]

    def values(
        self, found: Mask, tile_counts: Ints, owner: Ints, age: Floats, tiles: Floats
    ) -> tuple[Floats, Mask]:
        """[n, places] values and which of them are present; absent ones are 0.

        `tiles` holds the tiles of all n rows, row by row, `tile_counts[i]` for row i. Per tile `owner` is its
        row and `age` the number of tiles that it lies before the current one.
        """
        parts = self._folded(tile_counts, age, tiles)
        values, counts = parts[:, self._value], parts[:, self._count]
        present = counts > 0
        for place, within, column in self._deviations:
            inside = (age >= 0) & (age < within)
            values[:, place] = _deviation(
                counts[:, place], values[:, place], owner[inside], tiles[inside], column
            )
        if self._means:
            values[:, self._means] /= np.maximum(counts[:, self._means], 1.0)
        if self.counts:
            present[:, self.counts] = found[:, None]
        if not present.all():
            values[~present] = 0.0
        return values, present

    def _folded(self, tile_counts: Ints, age: Floats, tiles: Floats) -> Floats:
        """[n, windows × components]: each component over the tiles of each window."""
        rows, windows = len(tile_counts), len(self._ages)
        having: Any = np.flatnonzero(tile_counts)
        begins = (np.cumsum(tile_counts) - tile_counts)[having]
        parts = np.empty((rows, windows, self._width))
        if begins.size < rows:
            parts[:] = self._empty
        else:
            having = slice(None)
        at_once = windows if age.size <= FEW_TILES else 1
        for low in range(0, windows, at_once) if begins.size else ():
            chunk = slice(low, low + at_once)
            outside = ((age < 0) | (age >= self._ages[chunk, None]))[:, :, None]
            for fold, empty, columns, here in self._folds:
                chosen = np.where(outside, empty, tiles[:, columns])
                parts[having, chunk, here] = fold.reduceat(chosen, begins, axis=1).transpose(1, 0, 2)
        return parts.reshape(rows, windows * self._width)


def _deviation(n: Floats, sums: Floats, owner: Ints, tiles: Floats, column: int) -> Floats:
    """[n] population standard deviations; tiles are merged as in Chan, Golub, LeVeque 1979."""
    count, total, within = tiles[:, column - 2], tiles[:, column - 1], tiles[:, column]
    mean = sums / np.maximum(n, 1.0)
    between = np.where(count > 0, total / np.maximum(count, 1.0) - mean[owner], 0.0)
    squares = np.bincount(owner, weights=within + count * between * between, minlength=len(n))
    deviation: Floats = np.sqrt(np.maximum(squares, 0.0) / np.maximum(n, 1.0))
    return deviation
