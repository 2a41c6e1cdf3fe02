"""Folding ranges of ordered values, all rows at once: what each aggregation function makes of a window's events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from flywheel_common.arrays import Floats, Ints
from flywheel_feature.definitions.model import AggregationFunction as Function
from flywheel_feature.windows import hyperloglog


@dataclass(frozen=True, slots=True)
class Fold:
    """Windows over `n` ordered events: row `i` takes whole tiles `low[i]:middle[i]` and the current one `middle[i]:high[i]`.

    `take` picks the events from the prepared ones (None: all of them); `owner` and `tile` have one entry per picked event.
    """

    take: Ints | None
    owner: Ints
    tile: Ints
    low: Ints
    middle: Ints
    high: Ints

    @classmethod
    def of_pairs(
        cls, times: Ints, since: Ints, tile: int, low: Ints, middle: Ints, high: Ints, at: Ints
    ) -> Fold:
        """The events of each row's window that the row may see, laid out row by row: those with since <= at. `times` and
        `since` have one entry per event, the rest one per row. For windows that are no ranges of all events."""
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
        """A field of the picked events; None for no field."""
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
"""APPROX_DISTINCT looks at so many values and windows at once: bounds the memory."""


def _distinct(values: pl.Series, windows: Fold) -> pl.Series:
    """Registers of a window are the maximum over its values, whatever the tiles; equal windows are folded once."""
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
    """What hyperloglog.observations makes of the same values online; every text is hashed once."""
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
    """`ufunc` folded over array[low:high] per row, left to right; 0 where the range is empty. O(sum of range lengths)."""
    result = np.zeros(low.size, dtype=array.dtype)
    rows = np.flatnonzero(high > low)
    if not rows.size:
        return result
    # Sorted by their start, what lies between two ranges is looked at once at most.
    rows = rows[np.argsort(low[rows], kind="stable")]
    pairs = np.stack([low[rows], high[rows]], axis=1).ravel()
    padded = np.concatenate([array, array[-1:]])
    result[rows] = ufunc.reduceat(padded, pairs)[::2]
    return result


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Tiles that hold events, and per row the range of whole tiles; equal ranges are folded once."""

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
        # Tiles that start before a position: windows begin and end their whole tiles where a tile starts.
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


def _moments(array: Floats, low: Ints, high: Ints) -> tuple[Floats, Floats, Floats]:
    """Count, mean and sum of squared deviations of short ranges, in two passes."""
    count = (high - low).astype(np.float64)
    mean = reduce_ranges(np.add, array, low, high).astype(np.float64) / np.maximum(count, 1.0)
    lengths = high - low
    row = np.repeat(np.arange(low.size), lengths)
    index = np.arange(row.size) - np.repeat(np.cumsum(lengths) - lengths, lengths) + low[row]
    squares: Floats = np.bincount(row, weights=(array[index] - mean[row]) ** 2, minlength=low.size).astype(
        np.float64
    )
    return count, mean, squares


def _merge(
    a: tuple[Floats, Floats, Floats], b: tuple[Floats, Floats, Floats]
) -> tuple[Floats, Floats, Floats]:
    """Chan, Golub, LeVeque 1979: moments of two sets together; an empty set changes nothing."""
    count = a[0] + b[0]
    safe = np.maximum(count, 1.0)
    delta = b[1] - a[1]
    mean = np.where(a[0] == 0, b[1], a[1] + delta * b[0] / safe)
    return count, mean, a[2] + b[2] + delta * delta * a[0] * b[0] / safe


def _standard_deviation(array: Floats, windows: Fold) -> Floats:
    """Population standard deviation, free of cancellation: moments per tile, merged in ascending order, current tile last."""
    tiles = _Tiles.of(windows)
    partials = _moments(array, tiles.starts, tiles.ends)
    lengths = tiles.high - tiles.low
    order = np.argsort(-lengths, kind="stable")
    low, lengths = tiles.low[order], lengths[order]
    whole = tuple(np.zeros(low.size) for _ in range(3))
    for step in range(int(lengths[0]) if lengths.size else 0):
        active = int(np.searchsorted(-lengths, -step, "left"))  # rows with more than `step` tiles come first
        index = low[:active] + step
        merged = _merge(tuple(w[:active] for w in whole), tuple(p[index] for p in partials))  # type: ignore[arg-type]
        for target, source in zip(whole, merged, strict=True):
            target[:active] = source
    back = np.empty(order.size, dtype=np.int64)
    back[order] = np.arange(order.size)
    spread = tuple(w[back][tiles.inverse] for w in whole)
    count, _, squares = _merge(spread, _moments(array, windows.middle, windows.high))  # type: ignore[arg-type]
    deviation: Floats = np.sqrt(np.maximum(squares, 0.0) / np.maximum(count, 1.0))
    return deviation
