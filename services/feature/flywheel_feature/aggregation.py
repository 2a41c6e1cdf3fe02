"""Windows over event streams as tiles of partial aggregates: the arithmetic, pure numpy.

A window `w` over tiles of width `s` at time `t` covers the tiles floor((t - w)/s) + 1 … floor(t/s). A tile holds partial
aggregates of its events, so windows of all lengths share one state. An event whose field is null counts nowhere for that field.
An entity without any event has no state: all its features, COUNT too, are null (NOT_FOUND).

State of one (view version, entity) is one array of little-endian doubles (integers below 2^53 are exact):

    FORMAT  newest  tiles  partitions  count of list 0 …           header
    index  component 0 … component k-1                              per tile, index ascending
    time  known  rank  value                                        per list entry, lists in order, newest last
    partition  next offset                                          per partition applied

`newest` is the newest event time. Components: n, sum, m2 (sum of squared deviations from the tile's mean), min, max of a field's
values; m2 follows sum follows n. FIRST takes four: time, known, rank, value. LAST and LAST_N need no tiles: lists keep the newest
values, twice as many as asked, so that reads a little in the past are right too.

Ties of event time are broken by known time, max(event time, created time), then by `rank`, a hash of the event id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_feature.definitions import DAY, HOUR, SECOND, Aggregation, AggregationFunction, DataType

F = AggregationFunction
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FORMAT = 2.0
ENTRY = 4
_INF = float("inf")
_TILES = tuple(
    x * SECOND for x in (1, 2, 5, 10, 15, 30, 60, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
)
MINIMUM_WINDOW = 300 * SECOND
MAXIMUM_WINDOW = 90 * DAY
MAXIMUM_TILES = 4096
"""Tiles in one window: bounds the state of an entity and the work of a read."""


def choose_tile(windows: Iterable[int]) -> int:
    """The widest round tile that divides every window and cuts the smallest into at least 12; microseconds."""
    windows = list(windows)
    common = gcd(*windows)
    fitting = [t for t in _TILES if common % t == 0 and t * 12 <= min(windows)]
    return fitting[-1] if fitting else gcd(common, MINIMUM_WINDOW // 12)


def feature_type(function: AggregationFunction) -> DataType:
    """COUNT and APPROX_DISTINCT are INT64, LAST_N is FLOAT64_LIST, everything else FLOAT64."""
    if function in (F.COUNT, F.APPROX_DISTINCT):
        return DataType.INT64
    return DataType.FLOAT64_LIST if function == F.LAST_N else DataType.FLOAT64


def window_text(window: int) -> str:
    """`7d`, `90m`: a window in the largest unit that divides it."""
    for size, unit in ((DAY, "d"), (HOUR, "h"), (60 * SECOND, "m"), (SECOND, "s")):
        if window % size == 0:
            return f"{window // size}{unit}"
    return f"{window}us"


def default_name(function: AggregationFunction, field: str, window: int) -> str:
    """`mean_dep_delay_7d`, `count_1h`."""
    return "_".join(part for part in (function.name.lower(), field, window_text(window)) if part)


def event_ranks(event_ids: Sequence[str]) -> Ints:
    """[n] numbers below 2^52 that order events of equal times: the first bits of BLAKE2b of the id."""
    ranks = [
        int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "big") >> 12 for i in event_ids
    ]
    return np.array(ranks, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Events:
    """Events of one view, any order. `code` numbers the entity of each; values are float64 with a mask of those present."""

    code: Ints
    time: Ints
    known: Ints
    rank: Ints
    values: Mapping[str, tuple[Floats, Mask]]

    def take(self, rows: npt.NDArray[Any]) -> Events:
        values = {name: (v[rows], m[rows]) for name, (v, m) in self.values.items()}
        return Events(self.code[rows], self.time[rows], self.known[rows], self.rank[rows], values)


@dataclass(frozen=True, slots=True)
class Delta:
    """Partial aggregates of one entity's events, to be merged into its state."""

    newest: int
    body: bytes
    """Doubles: tiles, count per list, then tiles and list entries as in a state."""


class TileLayout:
    """What a view's state holds, from its aggregations."""

    def __init__(self, aggregations: Sequence[Aggregation], tile: int) -> None:
        self.aggregations = tuple(aggregations)
        self.tile = tile
        self.components: list[tuple[str, str]] = []
        """(field, operation) in order; operation is n, sum, m2, min, max, or first followed by three blanks."""
        self.lists: dict[str, int] = {}
        """Field → entries kept."""
        wanted: dict[str, set[AggregationFunction]] = {}
        for aggregation in aggregations:
            wanted.setdefault(aggregation.field, set()).add(aggregation.function)
            if aggregation.function in (F.LAST, F.LAST_N):
                keep = max(2 * max(aggregation.limit, 1), 8)
                self.lists[aggregation.field] = max(keep, self.lists.get(aggregation.field, 0))
        for field, functions in wanted.items():
            moments = functions & {F.COUNT, F.SUM, F.MEAN, F.STD}
            names = ["n"] if functions - {F.LAST, F.LAST_N, F.FIRST} else []
            names += ["sum"] if moments - {F.COUNT} else []
            names += ["m2"] if F.STD in functions else []
            names += ["min"] if F.MIN in functions else []
            names += ["max"] if F.MAX in functions else []
            names += ["first", "", "", ""] if F.FIRST in functions else []
            self.components += [(field, name) for name in names]
        self.column = {c: i + 1 for i, c in enumerate(self.components) if c[1]}
        """(field, operation) → column in a tile's row of doubles; column 0 is the tile's index."""
        self.fields = tuple(f for f in wanted if f)
        self.windows = tuple(sorted({a.window for a in aggregations}))
        self.stride = 1 + len(self.components)
        self.header = 4 + len(self.lists)
        self.kept_tiles = self.windows[-1] // tile + max(2, self.windows[-1] // tile // 4)
        """Tiles that a state keeps, counted back from its newest: a quarter more than the longest window."""

    @property
    def operations(self) -> str:
        """One letter per component, for the script that merges: + sum, v m2, < min, > max, f first, . rest of first."""
        letters = {"n": "+", "sum": "+", "m2": "v", "min": "<", "max": ">", "first": "f", "": "."}
        return "".join(letters[name] for _, name in self.components)

    def partials(self, events: Events) -> dict[int, Delta]:
        """Per entity code what its events add."""
        if not events.code.size:
            return {}
        events = events.take(np.lexsort((events.rank, events.known, events.time, events.code)))
        index = np.floor_divide(events.time, self.tile)
        fresh = np.ones(index.size, dtype=np.bool_)
        fresh[1:] = (index[1:] != index[:-1]) | (events.code[1:] != events.code[:-1])
        starts = np.flatnonzero(fresh)
        tiles = self._tile_rows(events, index, starts)
        codes, first = np.unique(events.code, return_index=True)
        last = np.append(first[1:], events.code.size)
        tile_low = np.searchsorted(starts, first, "left")
        tile_high = np.searchsorted(starts, last, "left")
        entries = [self._entries(events, field, keep, first, last) for field, keep in self.lists.items()]
        deltas: dict[int, Delta] = {}
        for i, code in enumerate(codes.tolist()):
            own = [e[i] for e in entries]
            head = np.array([tile_high[i] - tile_low[i], *(len(e) for e in own)], dtype="<f8")
            body = [head.tobytes(), tiles[tile_low[i] : tile_high[i]].tobytes(), *(e.tobytes() for e in own)]
            deltas[code] = Delta(int(events.time[last[i] - 1]), b"".join(body))
        return deltas

    def _tile_rows(self, events: Events, index: Ints, starts: npt.NDArray[np.intp]) -> Floats:
        rows = np.zeros((starts.size, self.stride), dtype="<f8")
        rows[:, 0] = index[starts]
        sizes = np.diff(np.append(starts, index.size))
        for (field, name), column in self.column.items():
            if not field:
                rows[:, column] = sizes
                continue
            values, present = events.values[field]
            zeroed = np.where(present, values, 0.0)
            if name == "n":
                rows[:, column] = np.add.reduceat(present.astype(np.float64), starts)
            elif name == "sum":
                rows[:, column] = np.add.reduceat(zeroed, starts)
            elif name == "m2":
                mean = rows[:, column - 1] / np.maximum(rows[:, column - 2], 1.0)
                off = np.where(present, values - np.repeat(mean, sizes), 0.0)
                rows[:, column] = np.add.reduceat(off * off, starts)
            elif name == "min":
                rows[:, column] = np.minimum.reduceat(np.where(present, values, _INF), starts)
            elif name == "max":
                rows[:, column] = np.maximum.reduceat(np.where(present, values, -_INF), starts)
            else:
                place = np.minimum.reduceat(np.where(present, np.arange(index.size), index.size), starts)
                found = place < index.size
                chosen = place[found]
                rows[:, column] = _INF
                for k, source in enumerate((events.time, events.known, events.rank, values)):
                    rows[found, column + k] = source[chosen]
        return rows

    def _entries(
        self, events: Events, field: str, keep: int, first: npt.NDArray[np.intp], last: npt.NDArray[np.intp]
    ) -> list[Floats]:
        values, present = events.values[field]
        stacked = np.stack([events.time, events.known, events.rank, values], axis=1).astype("<f8")
        return [
            stacked[a:b][present[a:b]][-keep:] for a, b in zip(first.tolist(), last.tolist(), strict=True)
        ]

    def state_of(self, delta: Delta, offsets: Mapping[int, int]) -> bytes:
        """The state of an entity whose only events are those of `delta`."""
        body = np.frombuffer(delta.body, "<f8")
        lists = len(self.lists)
        head = [FORMAT, delta.newest, body[0], len(offsets), *body[1 : 1 + lists]]
        tail = [x for pair in sorted(offsets.items()) for x in pair]
        return np.array(head, "<f8").tobytes() + body[1 + lists :].tobytes() + np.array(tail, "<f8").tobytes()

    def read(self, states: Sequence[bytes | None], as_of: Ints) -> WindowValues:
        """Every aggregation of every entity as of its time (microseconds), n states and n times."""
        return _Reading(self, states, as_of).values()


@dataclass(frozen=True, slots=True)
class WindowValues:
    """`columns`: one (values [n], mask of those with a value [n]) per aggregation; LAST_N values are arrays in an object array."""

    found: Mask
    newest: Ints
    """Newest event time, 0 where not found."""
    columns: list[tuple[npt.NDArray[Any], Mask]]


class _Reading:
    def __init__(self, layout: TileLayout, states: Sequence[bytes | None], as_of: Ints) -> None:
        self.layout = layout
        self.rows = len(states)
        blobs = [s or b"" for s in states]
        lengths = np.fromiter(map(len, blobs), np.int64, self.rows) // 8
        self.data = np.frombuffer(b"".join(blobs), "<f8")
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
        self._lists: dict[str, tuple[Ints, Floats]] = {}

    def values(self) -> WindowValues:
        columns: list[tuple[npt.NDArray[Any], Mask] | None] = [None] * len(self.layout.aggregations)
        for window in self.layout.windows:
            inside = (self.age >= 0) & (self.age < window // self.layout.tile)
            owner, tiles = self.owner[inside], self.tiles[inside]
            cache: dict[tuple[str, str], Floats] = {}
            for i, aggregation in enumerate(self.layout.aggregations):
                if aggregation.window == window:
                    columns[i] = self._one(aggregation, owner, tiles, cache)
        return WindowValues(self.found, self.newest, [c for c in columns if c is not None])

    def _one(
        self, aggregation: Aggregation, owner: Ints, tiles: Floats, cache: dict[tuple[str, str], Floats]
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
            return self._newest_values(aggregation)
        if function == F.FIRST:
            return self._first(field, owner, tiles)
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

    def _entries(self, field: str) -> tuple[Ints, Floats]:
        """Owners and entries [m, 4] of a list, owners ascending, newest last."""
        if field not in self._lists:
            number = list(self.layout.lists).index(field)
            here = self.starts[self.found]
            counts = np.zeros((self.rows, number + 1), np.int64)
            counts[self.found] = self.data[here[:, None] + 4 + np.arange(number + 1)]
            begin = self.starts + self.layout.header + self.tile_counts * self.layout.stride
            begin += counts[:, :number].sum(axis=1) * ENTRY
            own = counts[:, number]
            owner = np.repeat(np.arange(self.rows), own)
            within = np.arange(owner.size) - np.repeat(np.cumsum(own) - own, own)
            base = begin[owner] + within * ENTRY
            self._lists[field] = owner, self.data[base[:, None] + np.arange(ENTRY)]
        return self._lists[field]

    def _newest_values(self, aggregation: Aggregation) -> tuple[npt.NDArray[Any], Mask]:
        owner, entries = self._entries(aggregation.field)
        age = self.current[owner] - np.floor_divide(entries[:, 0], self.layout.tile)
        inside = (age >= 0) & (age < aggregation.window // self.layout.tile)
        owner, values = owner[inside], entries[inside, 3]
        ends = np.searchsorted(owner, np.arange(self.rows), "right")
        starts = np.searchsorted(owner, np.arange(self.rows), "left")
        present = ends > starts
        if aggregation.function == F.LAST:
            return np.where(
                present, np.append(values, 0.0)[np.where(present, ends - 1, values.size)], 0.0
            ), present
        lists = np.empty(self.rows, dtype=object)
        for row in range(self.rows):
            lists[row] = values[max(starts[row], ends[row] - aggregation.limit) : ends[row]][::-1]
        return lists, present
