"""Windows over event streams as tiles of partial aggregates: the arithmetic, pure numpy.

A window `w` over tiles of width `s` at time `t` covers the tiles floor((t - w)/s) + 1 … floor(t/s). A tile holds partial
aggregates of its events, so windows of all lengths share one state. An event whose field is null counts nowhere for that field.
An entity without any event has no state: all its features, COUNT too, are null (NOT_FOUND).

State of one (view version, entity) is one array of little-endian doubles (integers below 2^53 are exact):

    FORMAT  newest  tiles  partitions  count of list 0 …  count of sketch 0 …        header
    index  component 0 … component k-1                              per tile, index ascending
    time  known  rank  value                                        per list entry, lists in order, newest last
    index × OBSERVATIONS + register × 64 + rank                     per register hit, sketches in order, ascending
    texts of the entries of lists of texts, in order                bytes, filled up to a multiple of 8
    partition  next offset                                          per partition applied: what a state ends with

`newest` is the newest event time. Components: n, sum, m2 (sum of squared deviations from the tile's mean), min, max of a field's
values; m2 follows sum follows n. FIRST takes four: time, known, rank, value. LAST and LAST_N need no tiles: lists keep the newest
values, twice as many as asked, so that reads a little in the past are right too. The value of a list of texts is the length of its
text in bytes; the first and the newest values of an INT64 field are its 8 bytes as they are, which nothing computes with.
APPROX_DISTINCT keeps the registers of a HyperLogLog per tile (hyperloglog.py).

Ties of event time are broken by known time, max(event time, created time), then by `rank`, a hash of the event id.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import gcd

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats, Ints
from flywheel_feature.definitions.model import DAY, HOUR, SECOND, Aggregation, AggregationFunction, DataType
from flywheel_feature.windows import hyperloglog
from flywheel_feature.windows.tile_moments import Moments
from flywheel_feature.windows.tile_reading import Reading, WindowValues
from flywheel_feature.windows.tile_writing import Delta, Events

F = AggregationFunction

FORMAT = 2.0
GENERATION = -1
"""The partition that stands for the generation of a state (generations.py) among its positions."""
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


NEWEST = frozenset({F.LAST, F.LAST_N})
_KEPT_AS_IS = frozenset({DataType.BOOL, DataType.INT64, DataType.TIMESTAMP, DataType.STRING, DataType.BYTES})
TEXTS = frozenset({DataType.STRING, DataType.BYTES})


def feature_type(function: AggregationFunction, field: DataType = DataType.FLOAT64) -> DataType:
    """COUNT and APPROX_DISTINCT are INT64. LAST, FIRST and LAST_N keep BOOL, INT64, TIMESTAMP, STRING and BYTES (LAST_N as a list; of
    bytes there is none). Everything else is FLOAT64."""
    if function in (F.COUNT, F.APPROX_DISTINCT):
        return DataType.INT64
    kept = field if function in (F.LAST, F.FIRST, F.LAST_N) and field in _KEPT_AS_IS else DataType.FLOAT64
    if function != F.LAST_N:
        return kept
    return next((t for t in DataType if t.is_list and t.element == kept), DataType.FLOAT64_LIST)


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


class TileLayout:
    """What a view's state holds, from its aggregations; `kinds` are the data types of its features, in order (none: numbers)."""

    def __init__(
        self, aggregations: Sequence[Aggregation], tile: int, kinds: Sequence[DataType] = ()
    ) -> None:
        self.aggregations = tuple(aggregations)
        self.tile = tile
        self.kinds = tuple(kinds) or tuple(feature_type(a.function) for a in aggregations)
        self.components: list[tuple[str, str]] = []
        """(field, operation) in order; operation is n, sum, m2, min, max, or first followed by three blanks."""
        self.lists: dict[str, int] = {}
        """Field → entries kept."""
        self.sketches = tuple(dict.fromkeys(a.field for a in aggregations if a.function == F.APPROX_DISTINCT))
        self.texts = frozenset(
            a.field
            for a, kind in zip(aggregations, self.kinds, strict=True)
            if a.function in NEWEST and kind.element in TEXTS
        )
        """Fields whose list has texts."""
        self.bits = frozenset(
            a.field
            for a, kind in zip(aggregations, self.kinds, strict=True)
            if a.function in NEWEST | {F.FIRST} and kind.element == DataType.INT64
        )
        """Fields whose first and newest values are kept as the 8 bytes of an integer."""
        wanted: dict[str, set[AggregationFunction]] = {}
        for aggregation in aggregations:
            wanted.setdefault(aggregation.field, set()).add(aggregation.function)
            if aggregation.function in NEWEST:
                keep = max(2 * max(aggregation.limit, 1), 8)
                self.lists[aggregation.field] = max(keep, self.lists.get(aggregation.field, 0))
        for field, functions in wanted.items():
            moments = functions & {F.COUNT, F.SUM, F.MEAN, F.STD}
            names = ["n"] if functions - {F.LAST, F.LAST_N, F.FIRST, F.APPROX_DISTINCT} else []
            names += ["sum"] if moments - {F.COUNT} else []
            names += ["m2"] if F.STD in functions else []
            names += ["min"] if F.MIN in functions else []
            names += ["max"] if F.MAX in functions else []
            names += ["first", "", "", ""] if F.FIRST in functions else []
            self.components += [(field, name) for name in names]
        letters = {"n": "+", "sum": "+", "m2": "v", "min": "<", "max": ">", "first": "f", "": "."}
        self.operations = "".join(letters[name] for _, name in self.components)
        """One letter per component, for the script that merges: + sum, v m2, < min, > max, f first, . rest of first."""
        self.column = {c: i + 1 for i, c in enumerate(self.components) if c[1]}
        """(field, operation) → column in a tile's row of doubles; column 0 is the tile's index."""
        self.fields = tuple(f for f in wanted if f)
        self.windows = tuple(sorted({a.window for a in aggregations}))
        self.stride = 1 + len(self.components)
        self.sections = len(self.lists) + len(self.sketches)
        self.header = 4 + self.sections
        self.head = struct.Struct(f"<{self.header}d")
        self.absent = bytes(self.head.size)
        """Stands for no state."""
        self.kept_tiles = self.windows[-1] // tile + max(2, self.windows[-1] // tile // 4)
        """Tiles that a state keeps, counted back from its newest: a quarter more than the longest window."""
        self.moments = Moments(self)
        self.others = [i for i in range(len(self.aggregations)) if i not in set(self.moments.places)]
        """Aggregations that are not folded tile by tile: lists, sketches, FIRST."""

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
        entries += [self._registers(events, field, index, codes) for field in self.sketches]
        texts = [
            self._texts(events, f, keep, first, last) for f, keep in self.lists.items() if f in self.texts
        ]
        heads = np.empty((codes.size, 1 + self.sections), "<f8")
        heads[:, 0] = tile_high - tile_low
        for section, own in enumerate(entries, start=1):
            heads[:, section] = [len(e) for e in own]
        # Bytes are cut, not arrays: an array costs more than the few numbers of one entity.
        head, width = heads.tobytes(), heads.shape[1] * 8
        body, low, high = tiles.tobytes(), tile_low * self.stride * 8, tile_high * self.stride * 8
        cuts = zip(codes.tolist(), low.tolist(), high.tolist(), events.time[last - 1].tolist(), strict=True)
        deltas: dict[int, Delta] = {}
        for i, (code, begin, end, newest) in enumerate(cuts):
            pieces = [head[i * width : (i + 1) * width], body[begin:end], *(e[i].tobytes() for e in entries)]
            deltas[code] = Delta(newest, b"".join(pieces), b"".join(t[i] for t in texts))
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
                for k, source in enumerate((events.time, events.known, events.rank, events.kept(field))):
                    rows[found, column + k] = source[chosen]
        return rows

    def _entries(
        self, events: Events, field: str, keep: int, first: npt.NDArray[np.intp], last: npt.NDArray[np.intp]
    ) -> list[Floats]:
        present = events.values[field][1]
        stacked = np.stack([events.time, events.known, events.rank, events.kept(field)], axis=1).astype("<f8")
        return [
            stacked[a:b][present[a:b]][-keep:] for a, b in zip(first.tolist(), last.tolist(), strict=True)
        ]

    def _texts(
        self, events: Events, field: str, keep: int, first: npt.NDArray[np.intp], last: npt.NDArray[np.intp]
    ) -> list[bytes]:
        texts, present = events.texts[field], events.values[field][1]
        return [
            b"".join(texts[a:b][present[a:b]][-keep:])
            for a, b in zip(first.tolist(), last.tolist(), strict=True)
        ]

    def _registers(self, events: Events, field: str, index: Ints, codes: Ints) -> list[Floats]:
        """Per code the highest rank of every register hit, tile by tile."""
        present = events.values[field][1]
        code = events.code[present]
        keys = index[present] * hyperloglog.OBSERVATIONS + events.observed[field][present]
        order = np.lexsort((keys, code))
        code, keys = code[order], keys[order]
        kept = hyperloglog.highest(keys)
        kept[:-1] |= code[1:] != code[:-1]
        code, keys = code[kept], keys[kept]
        ends = np.searchsorted(code, codes, "right")
        return np.split(keys.astype("<f8"), ends[:-1])

    def state_of(self, delta: Delta, offsets: Mapping[int, int]) -> bytes:
        """The state of an entity whose only events are those of `delta`."""
        body = np.frombuffer(delta.body, "<f8")
        head = [FORMAT, delta.newest, body[0], len(offsets), *body[1 : 1 + self.sections]]
        tail = [x for pair in sorted(offsets.items()) for x in pair]
        return b"".join(
            (
                np.array(head, "<f8").tobytes(),
                body[1 + self.sections :].tobytes(),
                delta.texts,
                bytes(-len(delta.texts) % 8),
                np.array(tail, "<f8").tobytes(),
            )
        )

    def read(self, states: Sequence[bytes | None], as_of: Ints) -> WindowValues:
        """Every aggregation of every entity as of its time (microseconds), n states and n times."""
        return Reading(self, states, as_of).values()
