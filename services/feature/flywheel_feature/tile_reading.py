"""Reading windows out of states of tiles (their layout: aggregation.py), all rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flywheel_feature import distinct
from flywheel_feature.definitions import Aggregation, AggregationFunction, DataType

if TYPE_CHECKING:
    from flywheel_feature.aggregation import TileLayout

F = AggregationFunction
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
ENTRY = 4
"""Doubles of a list's entry."""
_INF = float("inf")


@dataclass(frozen=True, slots=True)
class WindowValues:
    """`columns`: one (values [n] of the feature's type, mask of those with a value [n]) per aggregation; LAST_N values are arrays in
    an object array, texts are str or bytes in one."""

    found: Mask
    newest: Ints
    """Newest event time, 0 where not found."""
    columns: list[tuple[npt.NDArray[Any], Mask]]


class Reading:
    def __init__(self, layout: TileLayout, states: Sequence[bytes | None], as_of: Ints) -> None:
        self.layout = layout
        self.rows = len(states)
        blobs = [s or b"" for s in states]
        lengths = np.fromiter(map(len, blobs), np.int64, self.rows) // 8
        self.raw = b"".join(blobs)
        self.data = np.frombuffer(self.raw, "<f8")
        self.found = lengths > 0
        self.starts = np.cumsum(lengths) - lengths
        self.current = np.floor_divide(as_of, layout.tile)
        here = self.starts[self.found]
        self.newest = np.zeros(self.rows, np.int64)
        self.newest[self.found] = self.data[here + 1]
        self.tile_counts = np.zeros(self.rows, np.int64)
        self.tile_counts[self.found] = self.data[here + 2]
        self.owner = np.repeat(np.arange(self.rows), self.tile_counts)
        within = np.arange(self.owner.size) - np.repeat(
            np.cumsum(self.tile_counts) - self.tile_counts, self.tile_counts
        )
        base = self.starts[self.owner] + layout.header + within * layout.stride
        self.tiles = self.data[base[:, None] + np.arange(layout.stride)]
        self.age = self.current[self.owner] - self.tiles[:, 0]
        """Tiles back from the current one; a window of c tiles holds ages 0 … c - 1."""
        self.widths = np.array([ENTRY] * len(layout.lists) + [1] * len(layout.sketches), np.int64)
        """Doubles of an entry of every list and sketch."""
        self.counts = np.zeros((self.rows, layout.sections), np.int64)
        self.counts[self.found] = self.data[here[:, None] + 4 + np.arange(layout.sections)]
        begin = self.starts + layout.header + self.tile_counts * layout.stride
        self.begins = np.column_stack([begin, begin[:, None] + np.cumsum(self.counts * self.widths, axis=1)])
        """Where every list and sketch begins, and after them the texts, [rows, sections + 1]."""
        self._sections: dict[int, tuple[Ints, Floats]] = {}

    def values(self) -> WindowValues:
        columns: list[tuple[npt.NDArray[Any], Mask] | None] = [None] * len(self.layout.aggregations)
        for window in self.layout.windows:
            inside = (self.age >= 0) & (self.age < window // self.layout.tile)
            owner, tiles = self.owner[inside], self.tiles[inside]
            cache: dict[tuple[str, str], Floats] = {}
            for i, aggregation in enumerate(self.layout.aggregations):
                if aggregation.window == window:
                    columns[i] = self._one(aggregation, self.layout.kinds[i], owner, tiles, cache)
        return WindowValues(self.found, self.newest, [c for c in columns if c is not None])

    def _one(
        self,
        aggregation: Aggregation,
        kind: DataType,
        owner: Ints,
        tiles: Floats,
        cache: dict[tuple[str, str], Floats],
    ) -> tuple[npt.NDArray[Any], Mask]:
        field, function = aggregation.field, aggregation.function

        def total(name: str) -> Floats:
            if (field, name) not in cache:
                column = tiles[:, self.layout.column[field, name]]
                sums: Floats = np.bincount(owner, weights=column, minlength=self.rows).astype(
                    np.float64, copy=False
                )
                cache[field, name] = sums
            return cache[field, name]

        if function in (F.LAST, F.LAST_N):
            return self._newest_values(aggregation, kind)
        if function == F.FIRST:
            values, given = self._first(field, owner, tiles)
            return _typed(values, kind), given
        if function == F.APPROX_DISTINCT:
            return self._distinct(aggregation)
        n = total("n")
        if function == F.COUNT:
            return n.astype(np.int64), self.found
        present = n > 0
        if function == F.SUM:
            return total("sum"), present
        if function == F.MEAN:
            return total("sum") / np.maximum(n, 1.0), present
        if function == F.STD:
            return self._deviation(field, n, total("sum"), owner, tiles), present
        ufunc, empty = (np.minimum, _INF) if function == F.MIN else (np.maximum, -_INF)
        result = np.full(self.rows, empty)
        ufunc.at(result, owner, tiles[:, self.layout.column[field, "min" if function == F.MIN else "max"]])
        return np.where(present, result, 0.0), present

    def _deviation(self, field: str, n: Floats, sums: Floats, owner: Ints, tiles: Floats) -> Floats:
        """Chan, Golub, LeVeque 1979, all tiles at once: within tiles, plus between their means and the mean of all."""
        column = self.layout.column[field, "m2"]
        count, total, within = tiles[:, column - 2], tiles[:, column - 1], tiles[:, column]
        mean = sums / np.maximum(n, 1.0)
        off = np.where(count > 0, total / np.maximum(count, 1.0) - mean[owner], 0.0)
        squares = np.bincount(owner, weights=within + count * off * off, minlength=self.rows)
        deviation: Floats = np.sqrt(np.maximum(squares, 0.0) / np.maximum(n, 1.0))
        return deviation

    def _first(self, field: str, owner: Ints, tiles: Floats) -> tuple[Floats, Mask]:
        column = self.layout.column[field, "first"]
        order = np.lexsort((tiles[:, 0], owner))
        order = order[np.isfinite(tiles[order, column])]
        rows, place = np.unique(owner[order], return_index=True)
        values, present = np.zeros(self.rows), np.zeros(self.rows, np.bool_)
        values[rows], present[rows] = tiles[order[place], column + 3], True
        return values, present

    def _section(self, number: int) -> tuple[Ints, Floats]:
        """Owners and entries [m, width] of a list or sketch, owners ascending."""
        if number not in self._sections:
            own = self.counts[:, number]
            owner = np.repeat(np.arange(self.rows), own)
            within = np.arange(owner.size) - np.repeat(np.cumsum(own) - own, own)
            width = int(self.widths[number])
            base = self.begins[owner, number] + within * width
            self._sections[number] = owner, self.data[base[:, None] + np.arange(width)]
        return self._sections[number]

    def _inside(self, index: Floats | Ints, owner: Ints, window: int) -> Mask:
        age = self.current[owner] - index
        inside: Mask = (age >= 0) & (age < window // self.layout.tile)
        return inside

    def _distinct(self, aggregation: Aggregation) -> tuple[Ints, Mask]:
        owner, entries = self._section(len(self.layout.lists) + self.layout.sketches.index(aggregation.field))
        keys = entries[:, 0].astype(np.int64)
        inside = self._inside(keys // distinct.OBSERVATIONS, owner, aggregation.window)
        owner, seen = owner[inside], keys[inside] % distinct.OBSERVATIONS
        present = np.bincount(owner, minlength=self.rows) > 0
        return distinct.counts(owner, seen, self.rows), present

    def _newest_values(self, aggregation: Aggregation, kind: DataType) -> tuple[npt.NDArray[Any], Mask]:
        number = list(self.layout.lists).index(aggregation.field)
        owner, entries = self._section(number)
        inside = self._inside(np.floor_divide(entries[:, 0], self.layout.tile), owner, aggregation.window)
        values: npt.NDArray[Any] = (
            self._texts(number, kind, inside)
            if aggregation.field in self.layout.texts
            else _typed(entries[inside, 3], kind)
        )
        owner = owner[inside]
        ends = np.searchsorted(owner, np.arange(self.rows), "right")
        starts = np.searchsorted(owner, np.arange(self.rows), "left")
        present = ends > starts
        if aggregation.function == F.LAST:
            empty = np.full(1, _EMPTY.get(kind, 0), values.dtype)
            return np.append(values, empty)[np.where(present, ends - 1, values.size)], present
        lists = np.empty(self.rows, dtype=object)
        for row in range(self.rows):
            lists[row] = values[max(starts[row], ends[row] - aggregation.limit) : ends[row]][::-1]
        return lists, present

    def _texts(self, number: int, kind: DataType, chosen: Mask) -> npt.NDArray[Any]:
        """Texts of a list's chosen entries. All lists of texts of a row lie one after the other behind all sections."""
        owner, entries = self._section(number)
        here = self.begins[:, -1] * 8
        for earlier, field in enumerate(list(self.layout.lists)[:number]):
            if field in self.layout.texts:
                rows, lengths = self._section(earlier)
                here += np.bincount(rows, lengths[:, 3], self.rows).astype(np.int64)
        lengths = entries[:, 3].astype(np.int64)
        before = np.cumsum(lengths) - lengths
        first = np.searchsorted(owner, owner, "left")
        begin = here[owner] + before - before[first]
        found = np.empty(int(chosen.sum()), dtype=object)
        for i, (low, size) in enumerate(zip(begin[chosen].tolist(), lengths[chosen].tolist(), strict=True)):
            raw = self.raw[low : low + size]
            found[i] = raw.decode() if kind.element == DataType.STRING else raw
        return found


_EMPTY: dict[DataType, Any] = {DataType.STRING: "", DataType.BYTES: b""}


def _typed(values: Floats, kind: DataType) -> npt.NDArray[Any]:
    if kind.element == DataType.INT64:
        return np.ascontiguousarray(values).view(np.int64)
    if kind.element == DataType.BOOL:
        return values != 0
    return values.astype(np.int64) if kind.element == DataType.TIMESTAMP else values
