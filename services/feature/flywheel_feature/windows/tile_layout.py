"""Layout of the state that the online store keeps per entity of a stream view: tiles of partial aggregates.

A window `w` over tiles of width `s` at time `t` covers the tiles floor((t - w)/s) + 1 … floor(t/s). A tile
holds partial aggregates of its events, so windows of all lengths share one state. An event whose field is
null does not count for that field. An entity has no state before its first event, and a read of a tile
before that of its first event finds none either: all its features, COUNT included, are null (NOT_FOUND).

The state of one (view version, entity) is one array of little-endian doubles (integers below 2^53 are exact):

    FORMAT  newest  tiles  partitions  count of list 0 …  count of sketch 0 …       header
    index  component 0 … component k-1                             per tile, index ascending
    time  known  rank  value                                       per list entry, lists in order, newest last
    index × OBSERVATIONS + register × 64 + rank                    per register hit, by sketch, ascending
    texts of the entries of lists of texts, in order               bytes, padded to a multiple of 8
    partition  next offset                                         per partition applied; the end of the state

`newest` is the newest event time. Components: n, sum, m2 (sum of squared deviations from the tile's mean),
min, max of a field's values; m2 follows sum follows n. FIRST takes four: time, known, rank, value. LAST and
LAST_N do not use tiles: lists keep the newest values, twice as many as a read returns, so that reads a little
in the past are also right. The value of a text in a list is its length in bytes. The first and newest values
of an INT64 field are its 8 bytes unchanged; no arithmetic is done on them. APPROX_DISTINCT keeps the
registers of a HyperLogLog per tile (hyperloglog.py).

Equal event times are ordered by known time and rank (event_order.py). tile_writing.py makes states,
tile_reading.py reads windows from them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from flywheel_feature.definitions.model import Aggregation, AggregationFunction, DataType
from flywheel_feature.windows.aggregations import NEWEST, TEXTS, feature_type

F = AggregationFunction

FORMAT = 2.0
ENTRY = 4
"""Doubles of a list's entry."""
GENERATION = -1
"""The pseudo-partition that holds the generation of a state (ingest/generations.py) among its positions."""
FIRST_EVENT = -2
"""The pseudo-partition that holds the first event time of a state. States of earlier versions lack it."""
_LETTERS = {"n": "+", "sum": "+", "m2": "v", "min": "<", "max": ">", "first": "f", "": "."}


class TileLayout:
    """What the state of a view holds, derived from its aggregations.

    `kinds` are the data types of the view's features, in order; without them the types of aggregations of
    numbers.
    """

    def __init__(
        self, aggregations: Sequence[Aggregation], tile: int, kinds: Sequence[DataType] = ()
    ) -> None:
        self.aggregations = tuple(aggregations)
        self.tile = tile
        """Width in microseconds."""
        self.kinds = tuple(kinds) or tuple(feature_type(a.function) for a in aggregations)
        self.sketches = tuple(dict.fromkeys(a.field for a in aggregations if a.function == F.APPROX_DISTINCT))
        """Fields with a HyperLogLog per tile."""
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
        self.lists: dict[str, int] = {}
        """Field → entries kept."""
        functions: dict[str, set[AggregationFunction]] = {}
        for aggregation in aggregations:
            functions.setdefault(aggregation.field, set()).add(aggregation.function)
            if aggregation.function in NEWEST:
                keep = max(2 * max(aggregation.limit, 1), 8)
                self.lists[aggregation.field] = max(keep, self.lists.get(aggregation.field, 0))
        self.components = [(field, name) for field, used in functions.items() for name in _components(used)]
        """(field, operation) in order: n, sum, m2, min, max, or first followed by three blanks."""
        self.operations = "".join(_LETTERS[name] for _, name in self.components)
        """The merge script's letter per component: + n, sum; v m2; < min; > max; f first; . rest of first."""
        self.column = {c: i + 1 for i, c in enumerate(self.components) if c[1]}
        """(field, operation) → column in a tile's row of doubles; column 0 is the tile's index."""
        self.windows = tuple(sorted({a.window for a in aggregations}))
        self.fields = tuple(f for f in functions if f)
        self.stride = 1 + len(self.components)
        """Doubles per tile."""
        self.sections = len(self.lists) + len(self.sketches)
        self.header = 4 + self.sections
        """Doubles of the header."""
        self.head = struct.Struct(f"<{self.header}d")
        self.absent = bytes(self.head.size)
        """The header that stands for no state."""
        self.kept_tiles = self.windows[-1] // tile + max(2, self.windows[-1] // tile // 4)
        """Tiles that a state keeps, counted back from its newest: a quarter more than the longest window.

        A tile that is this far ahead of all others drops none of them: it may be one event of today in a
        replay of last year. Two such tiles do. A state has one tile more than this at most.
        """


def _components(functions: set[AggregationFunction]) -> list[str]:
    """The operations that the aggregations of one field need."""
    names = ["n"] if functions - {F.LAST, F.LAST_N, F.FIRST, F.APPROX_DISTINCT} else []
    names += ["sum"] if functions & {F.SUM, F.MEAN, F.STD} else []
    names += ["m2"] if F.STD in functions else []
    names += ["min"] if F.MIN in functions else []
    names += ["max"] if F.MAX in functions else []
    names += ["first", "", "", ""] if F.FIRST in functions else []
    return names
