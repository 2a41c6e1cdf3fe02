"""Windowed aggregations of an online answer, recomputed from exactly the events that it included.

The log of an answer holds, per partition, the offset below which the entity's events were in its state
(windows/applied_offsets.py). A window takes whole tiles floor((t - w)/s) + 1 … floor(t/s) of these events and
no others, as the online store does: an applied event of the current tile counts although it is later than t,
and an event that was not applied yet does not count although it is earlier.

The states of an entity only gain events. Numbered in that order, they give for each event the first state
that holds it. Events in order of time were mostly applied in that order, so most windows are one range of
events. Where late events make holes in a range, its events are checked one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from flywheel_common.arrays import Ints
from flywheel_feature.definitions.frame_types import polars_type
from flywheel_feature.definitions.ttl import is_stale
from flywheel_feature.offline.joins.point_in_time import known_microseconds, microseconds
from flywheel_feature.offline.joins.window_folds import Fold, fold
from flywheel_feature.offline.joins.windows import WindowFeature
from flywheel_feature.windows.event_order import event_ranks

MAX_PAIRS = 4_000_000
"""Events that are checked one by one at once; bounds the memory."""

_ENTITY, _CHAIN, _MOMENT = "__entity", "__chain", "__moment"
_TIME, _KNOWN, _RANK = "__time", "__known", "__rank"
_PARTITION, _NEXT = "__applied_partition", "__applied_next"


@dataclass(frozen=True, slots=True)
class Stream:
    """Events of a source, and the names of the columns that identify and order them."""

    events: pl.DataFrame
    keys: Sequence[str]
    event_time: str
    created_time: str | None
    event_id: str
    partition: str
    offset: str


@dataclass(frozen=True, slots=True)
class _States:
    """The state of each spine row's answer: its chain and its number.

    A chain is a sequence of states of one entity that only gain events. Numbers ascend within and across
    chains.
    """

    chain: Ints
    moment: Ints
    """The number of each row's state."""
    starts: Ints
    """The first number of every chain, and one past the last number."""
    limits: pl.DataFrame
    """Chain, number, partition, next offset."""


@dataclass(frozen=True, slots=True)
class _Events:
    """Events by (chain, event time, known time, rank)."""

    frame: pl.DataFrame
    chain: Ints
    times: Ints
    appeared: Ints
    """The number of the first state that holds each event."""

    def positions(self, chain: Ints, times: Ints) -> Ints:
        """Per row the first event of its chain with event time >= the row's time."""
        unique, ranks = np.unique(self.times, return_inverse=True)
        wanted = chain * (unique.size + 1) + np.searchsorted(unique, times, "left")
        return np.searchsorted(self.chain * (unique.size + 1) + ranks, wanted, "left").astype(np.int64)


def applied_features(
    spine: pl.DataFrame,
    applied: pl.Series,
    stream: Stream,
    *,
    spine_time: str,
    tile: int,
    ttl: int = 0,
    features: Sequence[WindowFeature],
) -> pl.DataFrame:
    """Every feature for every spine row, in the order of the spine.

    `applied` has one list per row: partition, next offset, partition, next offset …. A feature is null where
    no event was applied up to the current tile (also COUNT), where the newest applied event is stale, or
    where the window has no value (COUNT is 0 then). `tile` and `ttl` are in microseconds.
    """
    entities = spine.select(stream.keys).unique(maintain_order=True).with_row_index(_ENTITY)
    entity = spine.select(stream.keys).join(entities, on=list(stream.keys), how="left", maintain_order="left")
    states = _states(entity.get_column(_ENTITY).fill_null(entities.height).to_list(), applied)
    events = _events(stream, entities, entity.get_column(_ENTITY), states)
    times = spine.select(microseconds(pl.col(spine_time))).to_series().to_numpy().astype(np.int64)

    seen = _first_applied(events, states) < (times // tile + 1) * tile
    if ttl:
        first_unseen = _settled(events.appeared, states.moment, last=True)
        newest = np.append(events.times, 0)[first_unseen - 1]
        seen &= ~is_stale(times, newest, ttl)
    rows = np.flatnonzero(seen)
    answers: dict[str, pl.Series] = {}
    for window in dict.fromkeys(f.window for f in features):
        wanted = [f for f in features if f.window == window]
        parts = list(_folds(events, states.chain[rows], states.moment[rows], times[rows], window, tile))
        back = np.full(spine.height, -1, np.int64)
        back[rows[np.concatenate([p for p, _ in parts])]] = np.arange(rows.size)
        index = pl.Series(back).replace(-1, None)
        for f in wanted:
            values = [
                fold(f.function, layout, layout.values(events.frame, f.field), f.limit) for _, layout in parts
            ]
            typed = pl.concat([v.cast(polars_type(f.kind), strict=False) for v in values])
            answers[f.name] = typed.gather(index).alias(f.name)
    return pl.DataFrame([answers[f.name] for f in features])


def _states(entities: list[int], applied: pl.Series) -> _States:
    """Order the states of every entity by the events they hold.

    A state that lacks events of the one before begins a new chain; this happens when the online store lost
    data.
    """
    flat = applied.list.explode(keep_nulls=False, empty_as_null=False).to_numpy().reshape(-1, 2)
    counts = applied.list.len().to_numpy().astype(np.int64) // 2
    ends = np.cumsum(counts)
    reached = np.concatenate([np.zeros(1, np.int64), np.cumsum(flat[:, 1])])
    total = reached[ends] - reached[ends - counts]
    order = np.lexsort((total, np.array(entities, np.int64)))
    lists = [flat[e - c : e].tolist() for e, c in zip(ends.tolist(), counts.tolist(), strict=True)]
    chain = np.zeros(len(entities), np.int64)
    number, entity = -1, -1
    before: dict[int, int] = {}
    for row in order.tolist():
        state = dict(lists[row])
        if entities[row] != entity or any(state.get(p, 0) < n for p, n in before.items()):
            number += 1
        before, entity = state, entities[row]
        chain[row] = number
    moment = np.empty(len(entities), np.int64)
    moment[order] = np.arange(len(entities))
    starts = np.searchsorted(chain[order], np.arange(number + 2), "left").astype(np.int64)
    owner = np.repeat(np.arange(len(entities)), counts)
    limits = pl.DataFrame(
        {_CHAIN: chain[owner], _MOMENT: moment[owner], _PARTITION: flat[:, 0], _NEXT: flat[:, 1]}
    )
    return _States(chain, moment, starts, limits)


def _events(stream: Stream, entities: pl.DataFrame, entity: pl.Series, states: _States) -> _Events:
    chains = pl.DataFrame({_ENTITY: entity, _CHAIN: states.chain}).unique().drop_nulls()
    own = (
        stream.events.filter(pl.col(stream.event_time).is_not_null())
        .join(entities, on=list(stream.keys), how="inner")
        .join(chains, on=_ENTITY, how="inner")
        .with_columns(
            microseconds(pl.col(stream.event_time)).alias(_TIME),
            known_microseconds(stream.event_time, stream.created_time).alias(_KNOWN),
            pl.col(stream.partition).cast(pl.Int64).alias(_PARTITION),
        )
    )
    ranks = pl.Series(_RANK, event_ranks(own.get_column(stream.event_id).to_list()), dtype=pl.Int64)
    limits = states.limits.sort(_NEXT, _MOMENT).unique([_CHAIN, _PARTITION, _NEXT], keep="first")
    frame = (
        own.with_columns(ranks, (pl.col(stream.offset) + 1).alias(_NEXT))
        .sort(_NEXT)
        .join_asof(
            limits.sort(_NEXT), on=_NEXT, by=[_CHAIN, _PARTITION], strategy="forward", check_sortedness=False
        )
        .sort(_CHAIN, _TIME, _KNOWN, _RANK)
    )
    chain = frame.get_column(_CHAIN).to_numpy().astype(np.int64)
    never = states.starts[chain + 1]
    moment = frame.get_column(_MOMENT).fill_null(-1).to_numpy().astype(np.int64)
    appeared = np.where(moment < 0, never, moment)
    return _Events(frame, chain, frame.get_column(_TIME).to_numpy().astype(np.int64), appeared)


def _settled(appeared: Ints, moment: Ints, *, last: bool) -> Ints:
    """Per row the end of the leading events that are all applied, or (`last`) of all applied events.

    Numbers ascend from chain to chain, so one running extreme over all chains does not mix them.
    """
    if last:
        return np.searchsorted(np.minimum.accumulate(appeared[::-1])[::-1], moment, "right").astype(np.int64)
    return np.searchsorted(np.maximum.accumulate(appeared), moment, "right").astype(np.int64)


def _first_applied(events: _Events, states: _States) -> Ints:
    """Per row the time of the first event that its state holds; the largest integer without any."""
    # Shifted so that a chain lies below all earlier ones: then one running minimum serves all chains.
    shift = int(states.starts[-1]) + 1
    least = np.minimum.accumulate(events.appeared - events.chain * shift)
    place = np.searchsorted(-least, states.chain * shift - states.moment, "left")
    held = np.append(events.chain, -1)[place] == states.chain
    none = np.iinfo(np.int64).max
    found: Ints = np.where(held, np.append(events.times, none)[place], none)
    return found


def _folds(
    events: _Events, chain: Ints, moment: Ints, times: Ints, window: int, tile: int
) -> Iterator[tuple[npt.NDArray[np.intp], Fold]]:
    """Parts of the rows, and the ranges of their windows among the events."""
    current = times // tile
    low = events.positions(chain, (current - window // tile + 1) * tile)
    middle = events.positions(chain, current * tile)
    high = events.positions(chain, (current + 1) * tile)
    all_applied = _settled(events.appeared, moment, last=False)
    none_applied = _settled(events.appeared, moment, last=True)
    is_range = np.maximum(all_applied, low) >= np.minimum(none_applied, high)
    rows = np.flatnonzero(is_range)
    end = np.minimum(high, np.maximum(low, all_applied))[rows]
    whole_tiles = middle[rows]
    # A range that ends within an earlier tile has only a part of it: it is folded last, as the current tile
    # is.
    cut = np.flatnonzero(end < whole_tiles)
    whole_tiles[cut] = events.positions(chain[rows][cut], events.times[end[cut]] // tile * tile)
    yield rows, Fold(None, events.chain, events.times // tile, low[rows], whole_tiles, end)
    rows = np.flatnonzero(~is_range)
    if rows.size:
        chunk = np.cumsum((high - low)[rows]) // MAX_PAIRS
        for part in np.split(rows, np.flatnonzero(np.diff(chunk)) + 1):
            yield (
                part,
                Fold.of_pairs(
                    events.times, events.appeared, tile, low[part], middle[part], high[part], moment[part]
                ),
            )
