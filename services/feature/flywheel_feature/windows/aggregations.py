"""Rules for windowed aggregations: limits of windows, default tile, result type, default name."""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd

from flywheel_feature.definitions.model import DAY, HOUR, SECOND, AggregationFunction, DataType

F = AggregationFunction

MINIMUM_WINDOW = 300 * SECOND
MAXIMUM_WINDOW = 90 * DAY
MAXIMUM_TILES = 4096
"""Tiles in one window. Bounds the state of an entity and the work of a read."""
NEWEST = frozenset({F.LAST, F.LAST_N})
"""Functions that keep the newest values themselves instead of folding them."""
TEXTS = frozenset({DataType.STRING, DataType.BYTES})

_ROUND_TILES = tuple(
    x * SECOND for x in (1, 2, 5, 10, 15, 30, 60, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
)
_MINIMUM_TILES = 12
_KEPT_AS_IS = frozenset({DataType.BOOL, DataType.INT64, DataType.TIMESTAMP, DataType.STRING, DataType.BYTES})


def choose_tile(windows: Iterable[int]) -> int:
    """The widest round tile (microseconds) that divides all windows and cuts the smallest into 12 or more."""
    windows = list(windows)
    common = gcd(*windows)
    fitting = [t for t in _ROUND_TILES if common % t == 0 and t * _MINIMUM_TILES <= min(windows)]
    return fitting[-1] if fitting else gcd(common, MINIMUM_WINDOW // _MINIMUM_TILES)


def feature_type(function: AggregationFunction, field: DataType = DataType.FLOAT64) -> DataType:
    """The data type of an aggregation over a field of type `field`.

    COUNT and APPROX_DISTINCT are INT64. LAST and FIRST keep BOOL, INT64, TIMESTAMP, STRING and BYTES; LAST_N
    keeps lists of them, BYTES excepted. Everything else is FLOAT64 or a list of it.
    """
    if function in (F.COUNT, F.APPROX_DISTINCT):
        return DataType.INT64
    kept = field if function in (F.LAST, F.FIRST, F.LAST_N) and field in _KEPT_AS_IS else DataType.FLOAT64
    if function != F.LAST_N:
        return kept
    return next((t for t in DataType if t.is_list and t.element == kept), DataType.FLOAT64_LIST)


def window_text(window: int) -> str:
    """A window in the largest unit that divides it: `7d`, `90m`."""
    for size, unit in ((DAY, "d"), (HOUR, "h"), (60 * SECOND, "m"), (SECOND, "s")):
        if window % size == 0:
            return f"{window // size}{unit}"
    return f"{window}us"


def default_name(function: AggregationFunction, field: str, window: int) -> str:
    """The name of an aggregation that declares none: `mean_dep_delay_7d`, `count_1h`."""
    return "_".join(part for part in (function.name.lower(), field, window_text(window)) if part)
