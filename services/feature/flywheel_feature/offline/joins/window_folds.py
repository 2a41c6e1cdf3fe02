"""The aggregation functions over ranges of ordered events, all rows at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from flywheel_common.arrays import Floats, Ints
from flywheel_feature.definitions.model import AggregationFunction as Function
from flywheel_feature.windows import hyperloglog


@dataclass(frozen=True, slots=True)
class Fold:
    """Windows over ordered events: per row the ranges of its whole tiles and of its current tile."""

    take: Ints | None
    """Places of the picked events among the prepared ones; None: all."""
    owner: Ints
    """Per picked event the entity or row that it belongs to."""
    tile: Ints
    """Per picked event its tile."""
    low: Ints
    """Per row the first event of its whole tiles."""
    middle: Ints
    """Per row the first event of its current tile."""
    high: Ints
    """Per row the end of its current tile."""

    @classmethod
    def of_pairs(
        cls, times: Ints, since: Ints, tile: int, low: Ints, middle: Ints, high: Ints, at: Ints
    ) -> Fold:
        """The windows of rows that may not see all events of their range: those with since <= at, row by row.

        `times` and `since` have one entry per event, the others one per row.
        """
        lengths = high - low
        row = np.repeat(np.arange(lengths.size), lengths)
        index = np.arange(row.size) - np.repeat(np.cumsum(lengths) - lengths, lengths) + low[row]
        seen = since[index] <= at[row]
        row, index = row[seen], index[seen]
        ends = np.cumsum(np.bincount(row, minlength=lengths.size)).astype(np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        whole = np.bincount(row[index < middle[row]], minlength=lengths.size)
        return cls(index, row.astype(np.int64), times[index] // tile, starts, starts + whole, ends)

    def values(self, events: pl.DataFrame, field: str) -> pl.Series | None:
        """A field of the picked events; None for an empty field."""
        if not field:
            return None
        values = events.get_column(field)
        return values if self.take is None else values.gather(self.take)

    def without_nulls(self, present: npt.NDArray[np.bool_]) -> Fold:
        """The same windows over the events that are `present`."""
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(present, dtype=np.int64)])
        return Fold(
            None,
            self.owner[present],
            self.tile[present],
            before[self.low],
            before[self.middle],
            before[self.high],
        )


def fold(function: Function, windows: Fold, values: pl.Series | None, limit: int = 0) -> pl.Series:
    """One value per row; null where the window has no value (COUNT: 0). NaN counts as null."""
    if values is None:
        return pl.Series(windows.high - windows.low)
    present = values.is_not_null()
    if values.dtype.is_float():
        present = present & values.is_not_nan()
    mask = present.to_numpy().astype(np.bool_)
    values = values.filter(present)
    windows = windows.without_nulls(mask)
    match function:
        case Function.COUNT:
            return pl.Series(windows.high - windows.low)
        case Function.LAST:
            return _pick(values, windows, windows.high - 1)
        case Function.FIRST:
            return _pick(values, windows, windows.low)
        case Function.LAST_N:
            return _last_n(values, windows, limit)
        case Function.APPROX_DISTINCT:
            return _distinct(values, windows)
    numbers = (
        values.cast(pl.Int64)
        if values.dtype.is_integer() or values.dtype == pl.Boolean
        else values.cast(pl.Float64)
    )
    array = numbers.to_numpy()
    empty = windows.high == windows.low
    match function:
        case Function.SUM:
            result = _by_tiles(np.add, array, windows)
        case Function.MIN:
            result = _by_tiles(np.minimum, array, windows)
        case Function.MAX:
            result = _by_tiles(np.maximum, array, windows)
        case Function.MEAN:
            result = _by_tiles(np.add, array.astype(np.float64), windows) / np.maximum(
                windows.high - windows.low, 1
            )
        case Function.STD:
            result = _standard_deviation(array.astype(np.float64), windows)
        case _:
            raise ValueError(f"aggregation function {function} does not exist")
    return pl.select(pl.when(pl.Series(~empty)).then(pl.Series(result))).to_series()


def _pick(values: pl.Series, windows: Fold, index: Ints) -> pl.Series:
    return values.gather(pl.Series(np.where(windows.high > windows.low, index, -1)).replace(-1, None))


def _last_n(values: pl.Series, windows: Fold, limit: int) -> pl.Series:
    lengths = np.minimum(windows.high - windows.low, limit)
    row = np.repeat(np.arange(lengths.size), lengths)
    back = np.arange(row.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    flat = pl.DataFrame({"row": row, "value": values.gather(windows.high[row] - 1 - back)})
    lists = flat.group_by("row", maintain_order=True).agg("value")
    return (
        pl.DataFrame({"row": np.arange(lengths.size)})
        .join(lists, on="row", how="left", maintain_order="left")
        .get_column("value")
    )


PAIRS = 4_000_000
ROWS = 65_536
"""Values and windows that APPROX_DISTINCT folds at once; bounds the memory."""


def _distinct(values: pl.Series, windows: Fold) -> pl.Series:
    """Estimates by HyperLogLog; equal windows are folded once."""
    seen = _observed(values)
    width = len(seen) + 1
    ranges, inverse = np.unique(windows.low * width + windows.high, return_inverse=True)
    low, high = ranges // width, ranges % width
    lengths = high - low
    found = np.zeros(ranges.size, np.int64)
    part = np.maximum(np.cumsum(lengths) // PAIRS, np.arange(ranges.size) // ROWS)
    for rows in np.split(np.arange(ranges.size), np.flatnonzero(np.diff(part)) + 1):
        if rows.size:
            owner = np.repeat(np.arange(rows.size), lengths[rows])
            back = np.arange(owner.size) - np.repeat(np.cumsum(lengths[rows]) - lengths[rows], lengths[rows])
            found[rows] = hyperloglog.counts(owner, seen[low[rows][owner] + back], rows.size)
    return pl.select(pl.when(pl.Series((lengths > 0)[inverse])).then(pl.Series(found[inverse]))).to_series()


def _observed(values: pl.Series) -> Ints:
    """hyperloglog.observations of the values; every different text is hashed once."""
    if values.dtype in (pl.String, pl.Binary):
        known = values.unique()
        observed = hyperloglog.observations(np.array([*known.to_list(), None], object)[:-1])
        pairs = pl.DataFrame({"value": known, "observed": observed})
        joined = pl.DataFrame({"value": values}).join(pairs, on="value", how="left", maintain_order="left")
        return joined.get_column("observed").to_numpy().astype(np.int64)
    if isinstance(values.dtype, pl.Datetime):
        values = values.dt.epoch("us")
    return hyperloglog.observations(values.to_numpy())


def reduce_ranges(
    ufunc: np.ufunc, array: npt.NDArray[np.generic], low: Ints, high: Ints
) -> npt.NDArray[np.generic]:
    """`ufunc` folded over array[low:high] per row, left to right; 0 for an empty range. O(sum of lengths)."""
    result = np.zeros(low.size, dtype=array.dtype)
    rows = np.flatnonzero(high > low)
    if not rows.size:
        return result
    # reduceat also folds the gaps between ranges; with ranges sorted by start, each gap is folded at most
    # once.
    rows = rows[np.argsort(low[rows], kind="stable")]
    pairs = np.stack([low[rows], high[rows]], axis=1).ravel()
    padded = np.concatenate([array, array[-1:]])
    result[rows] = ufunc.reduceat(padded, pairs)[::2]
    return result


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Tiles with events, and per row the range of its whole tiles; equal ranges are folded once."""

    starts: Ints
    ends: Ints
    low: Ints
    high: Ints
    inverse: Ints

    @classmethod
    def of(cls, windows: Fold) -> _Tiles:
        count = windows.owner.size
        fresh = np.ones(count, dtype=np.bool_)
        fresh[1:] = (windows.owner[1:] != windows.owner[:-1]) | (windows.tile[1:] != windows.tile[:-1])
        starts = np.flatnonzero(fresh).astype(np.int64)
        # The number of tiles that start before each position; whole tiles begin and end where a tile starts.
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(fresh, dtype=np.int64)])
        ranges = np.stack([before[windows.low], before[windows.middle]], axis=1)
        width = starts.size + 1
        unique, inverse = np.unique(ranges[:, 0] * width + ranges[:, 1], return_inverse=True)
        return cls(
            starts, np.append(starts[1:], count), unique // width, unique % width, inverse.astype(np.int64)
        )


def _by_tiles(ufunc: np.ufunc, array: npt.NDArray[np.generic], windows: Fold) -> npt.NDArray[np.generic]:
    """Whole tiles in ascending order, then the current tile."""
    tiles = _Tiles.of(windows)
    partials = reduce_ranges(ufunc, array, tiles.starts, tiles.ends)
    whole = reduce_ranges(ufunc, partials, tiles.low, tiles.high)[tiles.inverse]
    current = reduce_ranges(ufunc, array, windows.middle, windows.high)
    has_whole, has_current = windows.middle > windows.low, windows.high > windows.middle
    return np.where(has_whole & has_current, ufunc(whole, current), np.where(has_whole, whole, current))


class _Moments(NamedTuple):
    """Moments of n sets."""

    n: Floats
    mean: Floats
    squares: Floats
    """Sums of squared deviations from the mean."""

    def take(self, rows: Any) -> _Moments:
        return _Moments(self.n[rows], self.mean[rows], self.squares[rows])


def _moments(array: Floats, low: Ints, high: Ints) -> _Moments:
    """The moments of short ranges, in two passes."""
    count = (high - low).astype(np.float64)
    mean = reduce_ranges(np.add, array, low, high).astype(np.float64) / np.maximum(count, 1.0)
    lengths = high - low
    row = np.repeat(np.arange(low.size), lengths)
    index = np.arange(row.size) - np.repeat(np.cumsum(lengths) - lengths, lengths) + low[row]
    squares: Floats = np.bincount(row, weights=(array[index] - mean[row]) ** 2, minlength=low.size).astype(
        np.float64
    )
    return _Moments(count, mean, squares)


def _merge(a: _Moments, b: _Moments) -> _Moments:
    """The moments of two sets together (Chan, Golub, LeVeque 1979); an empty set changes nothing."""
    count = a.n + b.n
    safe = np.maximum(count, 1.0)
    delta = b.mean - a.mean
    mean = np.where(a.n == 0, b.mean, a.mean + delta * b.n / safe)
    return _Moments(count, mean, a.squares + b.squares + delta * delta * a.n * b.n / safe)


def _standard_deviation(array: Floats, windows: Fold) -> Floats:
    """Population standard deviation without cancellation: moments per tile, merged in ascending order."""
    tiles = _Tiles.of(windows)
    partials = _moments(array, tiles.starts, tiles.ends)
    lengths = tiles.high - tiles.low
    order = np.argsort(-lengths, kind="stable")
    low, lengths = tiles.low[order], lengths[order]
    whole = _Moments(np.zeros(low.size), np.zeros(low.size), np.zeros(low.size))
    for step in range(int(lengths[0]) if lengths.size else 0):
        # Rows with more than `step` tiles come first.
        active = int(np.searchsorted(-lengths, -step, "left"))
        merged = _merge(whole.take(slice(active)), partials.take(low[:active] + step))
        for target, source in zip(whole, merged, strict=True):
            target[:active] = source
    back = np.empty(order.size, dtype=np.int64)
    back[order] = np.arange(order.size)
    current = _moments(array, windows.middle, windows.high)
    count, _, squares = _merge(whole.take(back[tiles.inverse]), current)
    deviation: Floats = np.sqrt(np.maximum(squares, 0.0) / np.maximum(count, 1.0))
    return deviation
