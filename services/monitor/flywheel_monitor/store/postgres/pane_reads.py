"""Windows of panes, read from PostgreSQL in as few statements as their changes need.

One statement returns the state of every slice of time of a window, and the panes of the slices whose state is
not the known one. A window that was read before takes one statement, whether it changed or not; another
window takes two, the first of which finds out which of its slices are in memory. Both see one snapshot, so
that a pane that is written at the same time counts completely or not at all.

A transaction that changes a pane changes the day that contains it. So the statement looks at the days first,
and at the hours and minutes of those days only that are not as they were when these were read last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.store.postgres.array_text import array_text
from flywheel_monitor.store.postgres.pane_cache import (
    PaneCache,
    PaneSource,
    PartState,
    SliceState,
    WindowKey,
    WindowState,
)
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.pane_sums import PaneSum, WindowSum, blocks_of
from flywheel_monitor.windows.panes import PackedPane
from flywheel_monitor.windows.pieces import Part, Piece, split

_VARIANT = "p.variant_id = $1"
_SERVED = "p.variant_id = ANY(ARRAY(SELECT id FROM variant WHERE model_version_id = $1 AND role <> 3))"
# OFFSET 0 keeps the join from being turned round: each part is a range of the primary key.
_READ = """
WITH part AS (
    SELECT * FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])
        AS k (width_us, start_us, end_us, within_us, panes, changes)
), whole AS (
    SELECT p.start_us, count(*) AS panes, sum(p.xmin::text::bigint)::bigint AS changes FROM pane p
    WHERE {0} AND p.segment = $2 AND p.width_us = $9 AND p.start_us = ANY($6::bigint[])
    GROUP BY p.start_us
), changed AS MATERIALIZED (
    SELECT k.width_us, k.start_us, k.end_us FROM part k LEFT JOIN whole w ON w.start_us = k.within_us
    WHERE coalesce(w.panes, 0) <> k.panes OR coalesce(w.changes, 0) <> k.changes
), state AS (
    SELECT p.width_us, p.start_us, sum(p.predictions)::bigint AS predictions, count(*) AS panes,
        sum(p.xmin::text::bigint)::bigint AS changes
    FROM changed k, LATERAL (
        SELECT p.width_us, p.start_us, p.predictions, p.xmin FROM pane p
        WHERE {0} AND p.segment = $2
            AND p.width_us = k.width_us AND p.start_us >= k.start_us AND p.start_us < k.end_us
        OFFSET 0
    ) p
    GROUP BY p.width_us, p.start_us
), unknown AS (
    SELECT width_us, start_us, panes, changes FROM state
    EXCEPT SELECT * FROM unnest(
        $10::text::bigint[], $11::text::bigint[], $12::text::bigint[], $13::text::bigint[])
    LIMIT $14
)
SELECT width_us, start_us, predictions, panes, changes, NULL::bytea AS counts, NULL::bytea AS sums FROM state
UNION ALL
SELECT p.width_us, p.start_us, p.predictions, 0, 0, p.counts, p.sums
FROM unknown k JOIN pane p ON {0} AND p.segment = $2
    AND p.width_us = k.width_us AND p.start_us = k.start_us
UNION ALL
SELECT NULL, start_us, 0, panes, changes, NULL, NULL FROM whole
"""
_SLICES = """
SELECT p.width_us, p.start_us, p.predictions, p.counts, p.sums
FROM unnest($3::bigint[], $4::bigint[]) AS k (width_us, start_us)
JOIN pane p ON {0} AND p.segment = $2 AND p.width_us = k.width_us AND p.start_us = k.start_us
"""
SLICES_AT_ONCE = 64
"""Slices of time whose panes are in memory while a window is summed."""


async def sum_of_panes(
    conn: Connection,
    cache: PaneCache,
    source: PaneSource,
    layout: Layout,
    pieces: Sequence[Piece],
    segment: str,
    widest_us: int | None,
) -> WindowCounts:
    """The sum of the panes in the pieces. `widest_us`: `Kept.widest_us` of the version."""
    read = _Window(conn, cache, WindowKey(source, segment, tuple(pieces)), layout, widest_us)
    return await read.counts()


class _Window:
    """One read of a window."""

    def __init__(
        self, conn: Connection, cache: PaneCache, key: WindowKey, layout: Layout, widest_us: int | None
    ) -> None:
        self._conn = conn
        self._cache = cache
        self._key = key
        self._layout = layout
        self._widest_us = widest_us
        self._parts = split(key.pieces, widest_us)
        self._condition = _VARIANT if key.source.variant_id else _SERVED
        self._id = key.source.variant_id or key.source.version_id

    async def counts(self) -> WindowCounts:
        before = self._cache.window(self._key)
        if before is not None:
            state, read = await self._state(before[0], SLICES_AT_ONCE)
            if state == before[0]:
                return before[1]
        else:
            state, read = await self._state([], 0)
            known = [s for s in state if self._cached(s) is not None]
            if 0 < len(state) - len(known) <= SLICES_AT_ONCE:
                unknown = sorted(set(state).difference(known))
                state, read = await self._state(known, SLICES_AT_ONCE, unknown)
        total = WindowSum(self._layout, _rows(state))
        panes = {s: read.get(s) or self._cached(s) for s in _changed(total, state, before)}
        found = [(s.start_us, pane) for s, pane in panes.items() if pane is not None]
        if len(found) < len(panes):
            return await self._in_one_snapshot(before)
        total.add(found)
        return self._kept(state, total)

    async def _in_one_snapshot(self, before: tuple[WindowState, WindowCounts] | None) -> WindowCounts:
        """The counts, with the panes of many slices read in parts."""
        isolation = None if self._conn.is_in_transaction() else "repeatable_read"
        async with self._conn.transaction(isolation=isolation):
            state, _ = await self._state([], 0)
            total = WindowSum(self._layout, _rows(state))
            panes = {s: self._cached(s) for s in _changed(total, state, before)}
            total.add((s.start_us, pane) for s, pane in panes.items() if pane is not None)
            unknown = [s for s, pane in panes.items() if pane is None]
            for at in range(0, len(unknown), SLICES_AT_ONCE):
                part = unknown[at : at + SLICES_AT_ONCE]
                columns = [s.width_us for s in part], [s.start_us for s in part]
                statement = _SLICES.format(self._condition)
                rows = await self._conn.fetch(statement, self._id, self._key.segment, *columns)
                total.add((s.start_us, pane) for s, pane in self._summed(part, rows).items())
        return self._kept(state, total)

    async def _state(
        self, known: Sequence[SliceState], slices: int, wanted: WindowState | None = None
    ) -> tuple[WindowState, dict[SliceState, PaneSum]]:
        """The state of the window, and the panes of at most so many slices that are not in a known state, as
        far as they are in parts that have changed or contain one of the `wanted` slices."""
        parts = {
            part: None if _within(part, wanted or []) else self._cache.part(self._key.part(part))
            for part in self._parts
        }
        rows = await self._conn.fetch(
            _READ.format(self._condition),
            self._id,
            self._key.segment,
            [p.piece.width_us for p in parts],
            [p.piece.span.start_us for p in parts],
            [p.piece.span.end_us for p in parts],
            [p.within_us for p in parts],
            [-1 if s is None else s.panes for s in parts.values()],
            [0 if s is None else s.changes for s in parts.values()],
            self._widest_us,
            array_text([s.width_us for s in known]),
            array_text([s.start_us for s in known]),
            array_text([s.panes for s in known]),
            array_text([s.changes for s in known]),
            slices,
        )
        whole = {r["start_us"]: (r["panes"], r["changes"]) for r in rows if r["width_us"] is None}
        panes = [r for r in rows if r["counts"] is not None]
        state = sorted(SliceState(*r[:5]) for r in rows if r["counts"] is None and r["width_us"] is not None)
        state = self._completed(state, parts, whole)
        return state, self._summed(state, panes) if panes else {}

    def _completed(
        self,
        read: WindowState,
        parts: Mapping[Part, PartState | None],
        whole: Mapping[int, tuple[int, int]],
    ) -> WindowState:
        """The slices that were read, with those of the parts that have not changed; the others are kept.
        `whole`: the state of the panes that contain parts, by start."""
        unchanged: WindowState = []
        for part, before in parts.items():
            if part.within_us is None:
                continue
            now = whole.get(part.within_us, (0, 0))
            if before is not None and before[:2] == now:
                unchanged += before.slices
            else:
                self._cache.put_part(self._key.part(part), PartState(*now, tuple(_within(part, read))))
        return sorted(read + unchanged)

    def _summed(self, state: Sequence[SliceState], rows: Sequence[Any]) -> dict[SliceState, PaneSum]:
        """The sums of the panes in these rows, by the state of their slice."""
        states = {(s.width_us, s.start_us): s for s in state}
        panes: dict[SliceState, list[PackedPane]] = {}
        for r in rows:
            found = panes.setdefault(states[r["width_us"], r["start_us"]], [])
            found.append(PackedPane(r["counts"], r["sums"], r["predictions"]))
        sums = {s: PaneSum(self._layout, found) for s, found in panes.items()}
        for s, pane in sums.items():
            self._cache.put(self._key.slice(s), s, pane)
        return sums

    def _cached(self, state: SliceState) -> PaneSum | None:
        return self._cache.get(self._key.slice(state), state)

    def _kept(self, state: WindowState, total: WindowSum) -> WindowCounts:
        counts = total.result()
        self._cache.put_window(self._key, state, counts)
        return counts


def _within(part: Part, slices: WindowState) -> WindowState:
    """The slices of the part, of a sorted list."""
    width, span = part.piece.width_us, part.piece.span
    low, high = bisect_left(slices, (width, span.start_us)), bisect_left(slices, (width, span.end_us))
    return slices[low:high]


def _rows(state: WindowState) -> dict[int, int]:
    return {s.start_us: s.predictions for s in state}


def _changed(
    total: WindowSum, state: WindowState, before: tuple[WindowState, WindowCounts] | None
) -> list[SliceState]:
    """The slices of the blocks that are not as they were before; the others are taken over from there."""
    if before is None:
        return state
    old = _by_block(before[0])
    changed = []
    for block, slices in _by_block(state).items():
        if old.get(block) == slices:
            total.take_over(block, before[1])
        else:
            changed += slices
    return changed


def _by_block(state: WindowState) -> dict[int, list[SliceState]]:
    blocks = blocks_of(_rows(state))
    found: dict[int, list[SliceState]] = {}
    for s in state:
        found.setdefault(blocks[s.start_us], []).append(s)
    return found
