"""Reading windows from states of tiles (layout: tile_layout.py), all rows at once."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_feature.definitions.model import Aggregation, AggregationFunction, DataType
from flywheel_feature.windows import hyperloglog
from flywheel_feature.windows.tile_layout import ENTRY, FIRST_EVENT, TileLayout
from flywheel_feature.windows.tile_moments import Moments

F = AggregationFunction


@dataclass(frozen=True, slots=True)
class WindowValues:
    """The aggregations of n rows."""

    found: Mask
    """[n] which rows have a state."""
    newest: Ints
    """[n] newest event time, 0 where not found."""
    valid: Mask
    """[n, aggregations] which have a value."""
    bits: Ints
    """[n, moments] the bits of the values of COUNT, SUM, MEAN, STD, MIN and MAX (Moments.places), 0 where
    there is none."""
    columns: Sequence[tuple[npt.NDArray[Any], Mask]]
    """Per aggregation (values [n] of the feature's type, mask [n] of those with a value). LAST_N values are
    arrays in an object array, texts are str or bytes in one."""


class TileReader:
    """Reads every aggregation of a layout from states."""

    def __init__(self, layout: TileLayout) -> None:
        self.layout = layout
        self.moments = Moments(layout)
        moments = set(self.moments.places)
        self.others = [i for i in range(len(layout.aggregations)) if i not in moments]
        """Places of the aggregations that are no moments: lists, sketches, FIRST."""

    def read(self, states: Sequence[bytes | None], as_of: Ints) -> WindowValues:
        """Every aggregation of every entity at its time (microseconds): n states and n times."""
        return _Reading(self, states, as_of).values()


class _MomentColumns(Sequence[tuple[npt.NDArray[Any], Mask]]):
    """Columns of a layout's moments, each made when it is accessed."""

    def __init__(self, moments: Moments, numbers: Floats, present: Mask) -> None:
        self._integers = moments.counts
        self._numbers, self._present = numbers, present

    def __len__(self) -> int:
        return self._numbers.shape[1]

    @overload
    def __getitem__(self, index: int) -> tuple[npt.NDArray[Any], Mask]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[npt.NDArray[Any], Mask]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        values: npt.NDArray[Any] = self._numbers[:, index]
        return values.view(np.int64) if index in self._integers else values, self._present[:, index]


class _Reading:
    """One read: n states taken apart."""

    def __init__(self, reader: TileReader, states: Sequence[bytes | None], as_of: Ints) -> None:
        layout = reader.layout
        self.reader = reader
        self.layout = layout
        self.rows = len(states)
        self.states = [s or layout.absent for s in states]
        header, tile = 8 * layout.header, 8 * layout.stride
        # A loop over states is faster than index arithmetic for few states, and no slower for many.
        heads = [layout.head.unpack_from(s) for s in self.states]
        self.heads = np.array(heads).reshape(-1, layout.header).astype(np.int64)
        for row in np.flatnonzero(self.heads[:, 1] > as_of).tolist():
            if _first_tile(self.states[row], heads[row], layout.tile) > int(as_of[row]) // layout.tile:
                self.states[row], heads[row] = layout.absent, layout.head.unpack(layout.absent)
                self.heads[row] = 0
        tiles = [s[header : header + int(h[2]) * tile] for s, h in zip(self.states, heads, strict=True)]
        self.found = self.heads[:, 0] > 0
        self.newest, self.tile_counts = self.heads[:, 1], self.heads[:, 2]
        self.owner = np.repeat(np.arange(self.rows), self.tile_counts)
        self.tiles: Floats = np.frombuffer(b"".join(tiles), "<f8").reshape(-1, layout.stride)
        self.current = np.floor_divide(as_of, layout.tile)
        self.age = self.current[self.owner] - self.tiles[:, 0]
        """Tiles back from the current one; a window of c tiles holds ages 0 … c - 1."""
        self._sections: dict[int, tuple[Ints, Floats]] = {}

    @cached_property
    def raw(self) -> bytes:
        return b"".join(self.states)

    @cached_property
    def data(self) -> Floats:
        return np.frombuffer(self.raw, "<f8")

    @cached_property
    def counts(self) -> Ints:
        """Entries of every list and sketch, [rows, sections]."""
        return self.heads[:, 4:]

    @cached_property
    def widths(self) -> Ints:
        """Doubles of an entry of every list and sketch."""
        return np.array([ENTRY] * len(self.layout.lists) + [1] * len(self.layout.sketches), np.int64)

    @cached_property
    def begins(self) -> Ints:
        """Where every list and sketch begins, and after them the texts, [rows, sections + 1]."""
        lengths = np.fromiter(map(len, self.states), np.int64, self.rows) // 8
        first = np.cumsum(lengths) - lengths + self.layout.header + self.tile_counts * self.layout.stride
        return np.column_stack([first, first[:, None] + np.cumsum(self.counts * self.widths, axis=1)])

    def values(self) -> WindowValues:
        layout, moments, others = self.layout, self.reader.moments, self.reader.others
        numbers, present = moments.values(self.found, self.tile_counts, self.owner, self.age, self.tiles)
        bits = numbers.view(np.int64)
        bits[:, moments.counts] = numbers[:, moments.counts]
        if not others:
            columns: Sequence[tuple[npt.NDArray[Any], Mask]] = _MomentColumns(moments, numbers, present)
            return WindowValues(self.found, self.newest, present, bits, columns)
        valid = np.empty((self.rows, len(layout.aggregations)), np.bool_)
        valid[:, moments.places] = present
        merged = list(_MomentColumns(moments, numbers, present))
        for i in others:
            merged.insert(i, self._other(layout.aggregations[i], layout.kinds[i]))
            valid[:, i] = merged[i][1]
        return WindowValues(self.found, self.newest, valid, bits, merged)

    def _other(self, aggregation: Aggregation, kind: DataType) -> tuple[npt.NDArray[Any], Mask]:
        if aggregation.function == F.APPROX_DISTINCT:
            return self._distinct(aggregation)
        if aggregation.function == F.FIRST:
            inside = (self.age >= 0) & (self.age < aggregation.window // self.layout.tile)
            values, given = self._first(aggregation.field, self.owner[inside], self.tiles[inside])
            return _typed(values, kind), given
        return self._newest_values(aggregation, kind)

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
        inside = self._inside(keys // hyperloglog.OBSERVATIONS, owner, aggregation.window)
        owner, seen = owner[inside], keys[inside] % hyperloglog.OBSERVATIONS
        present = np.bincount(owner, minlength=self.rows) > 0
        return hyperloglog.counts(owner, seen, self.rows), present

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
        """Texts of a list's chosen entries; the texts of all lists of a row follow its sections."""
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


def _first_tile(state: bytes, head: tuple[float, ...], tile: int) -> float:
    """The tile of a state's first event; before all others if the state does not hold it."""
    offsets = dict(struct.iter_unpack("<dd", state[len(state) - 16 * int(head[3]) :]))
    return offsets[FIRST_EVENT] // tile if FIRST_EVENT in offsets else -math.inf


_EMPTY: dict[DataType, Any] = {DataType.STRING: "", DataType.BYTES: b""}


def _typed(values: Floats, kind: DataType) -> npt.NDArray[Any]:
    if kind.element == DataType.INT64:
        return np.ascontiguousarray(values).view(np.int64)
    if kind.element == DataType.BOOL:
        return values != 0
    return values.astype(np.int64) if kind.element == DataType.TIMESTAMP else values
