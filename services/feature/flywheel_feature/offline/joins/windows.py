"""Windowed aggregations of a stream at past times, recomputed from archived events.

A window `w` over tiles of width `s` at time `t` covers tiles floor((t - w)/s) + 1 … floor(t/s), restricted to
events with event time <= t (and created time <= t where the source has one). A window starts where a tile
starts, so it covers between w - s and w of time, as in the online store, which keeps whole tiles only.

Sums are folded as in the online store: each tile by itself, then tiles in ascending order, the current tile
last. Within a tile, events are folded by (event time, known time, rank), online in the order of arrival.
Sums, means and standard deviations of fractions agree to a relative 1e-6, everything else exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from flywheel_common.arrays import Ints
from flywheel_feature.definitions.frame_types import polars_type
from flywheel_feature.definitions.model import AggregationFunction, DataType
from flywheel_feature.definitions.ttl import is_stale
from flywheel_feature.offline.joins.point_in_time import (
    MATCHED_TIME,
    as_of_join,
    known_microseconds,
    microseconds,
)
from flywheel_feature.offline.joins.window_folds import Fold, fold
from flywheel_feature.windows.event_order import event_ranks

MAX_PAIRS = 4_000_000
"""Pairs of late events and spine rows that are compared at once; bounds the memory."""

_CODE, _TIME, _KNOWN, _RANK = "__code", "__time", "__known", "__rank"


@dataclass(frozen=True, slots=True)
class WindowFeature:
    """One aggregation; `field` is empty only for COUNT, `kind` is its data type."""

    name: str
    function: AggregationFunction
    field: str
    window: int
    """Microseconds, a multiple of the tile."""
    kind: DataType
    limit: int = 0


@dataclass(frozen=True, slots=True)
class _Events:
    """Events of the spine's entities, sorted by (entity, event time, created time, event id)."""

    frame: pl.DataFrame
    codes: Ints
    times: Ints
    known: Ints | None
    """When each became known; None if every event was known at its event time."""

    def positions(self, codes: Ints, times: Ints, unique_times: Ints, ranks: Ints) -> Ints:
        """Per row the first event of its entity with event time >= the row's time."""
        width = unique_times.size + 1
        wanted = codes * width + np.searchsorted(unique_times, times, "left")
        return np.searchsorted(self.codes * width + ranks, wanted, "left").astype(np.int64)


def windowed_features(
    spine: pl.DataFrame,
    events: pl.DataFrame,
    *,
    keys: Sequence[str],
    spine_time: str,
    event_time: str,
    created_time: str | None = None,
    event_id: str | None = None,
    tile: int,
    ttl: int = 0,
    features: Sequence[WindowFeature],
) -> pl.DataFrame:
    """Every feature per spine row, in the order of the spine, and `MATCHED_TIME`, the newest event's time.

    A feature is null where the entity has no known event yet (also COUNT), where its newest event is stale,
    or where the window has no value (COUNT is 0 then). `tile` and `ttl` are in microseconds.
    """
    newest = as_of_join(
        spine,
        events,
        keys=keys,
        spine_time=spine_time,
        event_time=event_time,
        created_time=created_time,
        columns={},
    )
    seen = _seen(spine, newest, spine_time, ttl)
    rows = np.flatnonzero(seen)
    prepared, codes = _prepare(spine[rows], events, keys, event_time, created_time, event_id)
    times = spine[rows].select(microseconds(pl.col(spine_time))).to_series().to_numpy().astype(np.int64)
    answers: dict[str, pl.Series] = {}
    for window in dict.fromkeys(f.window for f in features):
        wanted = [f for f in features if f.window == window]
        parts = [
            {
                f.name: _typed(f, fold(f.function, layout, layout.values(prepared.frame, f.field), f.limit))
                for f in wanted
            }
            for layout in _layouts(prepared, codes, times, window, tile)
        ]
        for feature in wanted:
            answers[feature.name] = pl.concat([p[feature.name] for p in parts])
    places = np.full(spine.height, -1, dtype=np.int64)
    places[rows] = np.arange(rows.size)
    index = pl.Series(places).replace(-1, None)
    return pl.DataFrame(
        {
            **{f.name: answers[f.name].gather(index).alias(f.name) for f in features},
            MATCHED_TIME: newest[MATCHED_TIME],
        }
    )


def _seen(spine: pl.DataFrame, newest: pl.DataFrame, spine_time: str, ttl: int) -> npt.NDArray[np.bool_]:
    frame = pl.DataFrame({"t": spine.get_column(spine_time), "e": newest.get_column(MATCHED_TIME)})
    seen = pl.col("e").is_not_null() & ~is_stale(microseconds(pl.col("t")), microseconds(pl.col("e")), ttl)
    return frame.select(seen.fill_null(False)).to_series().to_numpy().astype(np.bool_)


def _prepare(
    spine: pl.DataFrame,
    events: pl.DataFrame,
    keys: Sequence[str],
    event_time: str,
    created_time: str | None,
    event_id: str | None,
) -> tuple[_Events, Ints]:
    entities = spine.select(keys).unique(maintain_order=True).with_row_index(_CODE)
    codes = (
        spine.select(keys).join(entities, on=list(keys), how="left", maintain_order="left").get_column(_CODE)
    )
    ordered = (
        events.filter(pl.col(event_time).is_not_null())
        .join(entities, on=list(keys), how="inner", maintain_order="left")
        .with_columns(
            microseconds(pl.col(event_time)).alias(_TIME),
            known_microseconds(event_time, created_time).alias(_KNOWN),
        )
        .sort([_CODE, _TIME, _KNOWN], maintain_order=True)
    )
    if event_id is not None:
        ordered = _break_ties(ordered, event_id)
    times = ordered.get_column(_TIME).to_numpy().astype(np.int64)
    knowns = ordered.get_column(_KNOWN).to_numpy().astype(np.int64)
    late = bool((knowns > times).any())
    prepared = _Events(
        ordered, ordered.get_column(_CODE).to_numpy().astype(np.int64), times, knowns if late else None
    )
    return prepared, codes.to_numpy().astype(np.int64)


def _break_ties(ordered: pl.DataFrame, event_id: str) -> pl.DataFrame:
    """Order events of equal times as the online store does; only their ids are hashed: hashing is slow."""
    tied = ordered.select(pl.struct(_CODE, _TIME, _KNOWN).is_duplicated()).to_series()
    if not tied.any():
        return ordered
    ranks = np.zeros(ordered.height, dtype=np.int64)
    mask = tied.to_numpy()
    ranks[mask] = event_ranks(ordered.get_column(event_id).filter(tied).to_list())
    return ordered.with_columns(pl.Series(_RANK, ranks)).sort(
        [_CODE, _TIME, _KNOWN, _RANK], maintain_order=True
    )


def _layouts(events: _Events, codes: Ints, times: Ints, window: int, tile: int) -> Iterator[Fold]:
    """The range of each row's window among the events; with late events several parts, rows in order."""
    unique_times, ranks = np.unique(events.times, return_inverse=True)
    current = times // tile
    low = events.positions(codes, (current - window // tile + 1) * tile, unique_times, ranks)
    middle = events.positions(codes, current * tile, unique_times, ranks)
    high = events.positions(codes, times + 1, unique_times, ranks)
    if events.known is None:
        yield Fold(None, events.codes, events.times // tile, low, middle, high)
        return
    lengths = high - low
    if not lengths.size:
        yield Fold(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), low, middle, high)
        return
    chunk = np.cumsum(lengths) // MAX_PAIRS
    for part in np.split(np.arange(times.size), np.flatnonzero(np.diff(chunk)) + 1):
        yield Fold.of_pairs(
            events.times, events.known, tile, low[part], middle[part], high[part], times[part]
        )


def _typed(feature: WindowFeature, values: pl.Series) -> pl.Series:
    return values.alias(feature.name).cast(polars_type(feature.kind), strict=False)
