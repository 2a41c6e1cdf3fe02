"""COUNT, SUM, MEAN, STD, MIN and MAX out of tiles: all rows and aggregations in a few calls of numpy, because an online read is of a few
rows, where a call costs as much as the numbers in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_feature.definitions.model import AggregationFunction

if TYPE_CHECKING:
    from flywheel_feature.windows.tile_layout import TileLayout

F = AggregationFunction
MOMENTS = frozenset({F.COUNT, F.SUM, F.MEAN, F.STD, F.MIN, F.MAX})
_COMPONENT = {F.COUNT: "n", F.MIN: "min", F.MAX: "max"}
"""What a value is made of; the others are made of sums."""
_FOLDS: tuple[tuple[Any, float, tuple[str, ...]], ...] = (
    (np.add, 0.0, ("n", "sum")),
    (np.minimum, np.inf, ("min",)),
    (np.maximum, -np.inf, ("max",)),
)
"""How components of several tiles become one, and what they are of no tile."""
FEW_TILES = 65_536
"""Up to so many tiles all windows are folded at once; above, memory counts more than calls."""


class Moments:
    """Where a layout's numbers lie: compiled once."""

    def __init__(self, layout: TileLayout) -> None:
        own = [(i, a) for i, a in enumerate(layout.aggregations) if a.function in MOMENTS]
        self.places = [i for i, _ in own]
        """Which of the layout's aggregations these are: the columns of `values`, in order."""
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
        self._value = np.array(
            [b + folded.index((a.field, _COMPONENT.get(a.function, "sum"))) for b, (_, a) in zip(begins, own, strict=True)],
            np.intp,
        )  # fmt: skip
        self._count = np.array(
            [b + folded.index((a.field, "n")) for b, (_, a) in zip(begins, own, strict=True)], np.intp
        )
        self.counts = [p for p, (_, a) in enumerate(own) if a.function == F.COUNT]
        """Columns of whole numbers."""
        self._means = [p for p, (_, a) in enumerate(own) if a.function == F.MEAN]
        self._deviations = [
            (p, a.window // layout.tile, layout.column[a.field, "m2"])
            for p, (_, a) in enumerate(own)
            if a.function == F.STD
        ]

    def values(
        self, found: Mask, tile_counts: Ints, owner: Ints, age: Floats, tiles: Floats
    ) -> tuple[Floats, Mask]:
        """[n, places] and which of them are values; the others are 0. Of n rows with so many tiles each, one after the other; `owner`
        says whose a tile is, `age` how many tiles back it lies."""
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
            some = slice(low, low + at_once)
            outside = ((age < 0) | (age >= self._ages[some, None]))[:, :, None]
            for fold, empty, columns, here in self._folds:
                chosen = np.where(outside, empty, tiles[:, columns])
                parts[having, some, here] = fold.reduceat(chosen, begins, axis=1).transpose(1, 0, 2)
        return parts.reshape(rows, windows * self._width)


def _deviation(n: Floats, sums: Floats, owner: Ints, tiles: Floats, column: int) -> Floats:
    """Chan, Golub, LeVeque 1979, all tiles at once: within tiles, plus between their means and the mean of all."""
    count, total, within = tiles[:, column - 2], tiles[:, column - 1], tiles[:, column]
    mean = sums / np.maximum(n, 1.0)
    off = np.where(count > 0, total / np.maximum(count, 1.0) - mean[owner], 0.0)
    squares = np.bincount(owner, weights=within + count * off * off, minlength=len(n))
    deviation: Floats = np.sqrt(np.maximum(squares, 0.0) / np.maximum(n, 1.0))
    return deviation
