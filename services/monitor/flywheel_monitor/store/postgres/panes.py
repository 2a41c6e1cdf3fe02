"""Panes in PostgreSQL, read, merged and written in bulk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.store.postgres.pane_cache import PaneCache, PaneState, SliceKey, WindowKey
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.pane_sums import PaneSum, WindowSum
from flywheel_monitor.windows.panes import PackedPane, PaneAccumulator, PaneKey
from flywheel_monitor.windows.pieces import Piece
from flywheel_monitor.windows.span import Span

_READ = """
SELECT p.variant_id, p.segment, p.width_us, p.start_us, p.predictions, p.counts, p.sums
FROM unnest($2::integer[], $3::text[], $4::bigint[], $5::bigint[])
    AS k (variant_id, segment, width_us, start_us)
JOIN pane p ON p.variant_id = k.variant_id AND p.partition = $1
    AND p.segment = k.segment AND p.width_us = k.width_us AND p.start_us = k.start_us
"""
_WRITE = """
INSERT INTO pane (partition, variant_id, segment, width_us, start_us, predictions, counts, sums)
SELECT $1, * FROM unnest($2::integer[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[],
    $8::bytea[])
ON CONFLICT (variant_id, segment, width_us, start_us, partition)
DO UPDATE SET predictions = excluded.predictions, counts = excluded.counts, sums = excluded.sums
"""
_PIECES = """
FROM unnest($3::bigint[], $4::bigint[], $5::bigint[]) AS k (width_us, start_us, end_us)
JOIN pane p ON p.variant_id = ANY($1::integer[]) AND p.segment = $2
    AND p.width_us = k.width_us AND p.start_us >= k.start_us AND p.start_us < k.end_us
"""
_STATES = (
    "SELECT p.width_us, p.start_us, sum(p.predictions)::bigint AS predictions, count(*) AS panes, "
    "sum(p.xmin::text::bigint)::bigint AS changes" + _PIECES + "GROUP BY p.width_us, p.start_us ORDER BY 1, 2"
)
_SLICES = """
SELECT p.width_us, p.start_us, p.predictions, p.counts, p.sums
FROM unnest($3::bigint[], $4::bigint[]) AS k (width_us, start_us)
JOIN pane p ON p.variant_id = ANY($1::integer[]) AND p.segment = $2
    AND p.width_us = k.width_us AND p.start_us = k.start_us
"""
_EXTENT = """
SELECT min(start_us), max(start_us) FROM (
    SELECT * FROM unnest($1::integer[]) AS v (id), LATERAL (
        (SELECT start_us FROM pane WHERE variant_id = v.id AND segment = $2 AND width_us = $3
            AND start_us >= $4 AND start_us < $5 AND predictions > 0 ORDER BY start_us LIMIT 1)
        UNION ALL
        (SELECT start_us FROM pane WHERE variant_id = v.id AND segment = $2 AND width_us = $3
            AND start_us >= $4 AND start_us < $5 AND predictions > 0 ORDER BY start_us DESC LIMIT 1)
    ) ends
) found
"""
_ADOPT = "UPDATE pane SET width_us = $1 WHERE width_us = 0"
SLICES_AT_ONCE = 64
"""Slices of time whose panes are in memory while a window is summed."""
PANES_AT_ONCE = 512
"""Panes that are read and written in one statement; those of one variant are together."""


async def adopt_panes(conn: Connection, pane_us: int) -> None:
    """Give panes that were counted before widths were stored the width of a pane."""
    await conn.execute(_ADOPT, pane_us)


async def merge_panes(conn: Connection, partition: int, added: Mapping[int, PaneAccumulator]) -> None:
    """Add to the stored panes of these variants. Only the consumer of the partition writes them, so that
    nothing changes between read and write."""
    group: dict[int, PaneAccumulator] = {}
    panes = 0
    for variant_id, mine in sorted(added.items()):
        if group and panes + len(mine.touched()) > PANES_AT_ONCE:
            await _merge(conn, partition, group)
            group, panes = {}, 0
        group[variant_id] = mine
        panes += len(mine.touched())
    if group:
        await _merge(conn, partition, group)


async def _merge(conn: Connection, partition: int, added: Mapping[int, PaneAccumulator]) -> None:
    """`merge_panes` in one read and one write."""
    touched = [(variant_id, *key) for variant_id, mine in added.items() for key in mine.touched()]
    stored: dict[int, dict[PaneKey, PackedPane]] = {variant_id: {} for variant_id in added}
    for r in await conn.fetch(_READ, partition, *map(list, zip(*touched, strict=True))):
        key = PaneKey(r["segment"], r["width_us"], r["start_us"])
        stored[r["variant_id"]][key] = PackedPane(r["counts"], r["sums"], r["predictions"])
    rows = [
        (variant_id, *key, pane.predictions, pane.counts, pane.sums)
        for variant_id, mine in added.items()
        for key, pane in mine.merge(stored[variant_id]).items()
    ]
    await conn.execute(_WRITE, partition, *map(list, zip(*rows, strict=True)))


async def sum_of_panes(
    conn: Connection,
    cache: PaneCache,
    variant_ids: Sequence[int],
    layout: Layout,
    parts: Sequence[Piece],
    segment: str,
) -> WindowCounts:
    """The sum of the panes in the pieces."""
    columns = [[p.width_us for p in parts], [p.span.start_us for p in parts], [p.span.end_us for p in parts]]
    ids = tuple(variant_ids)
    window = WindowKey(ids, segment, tuple(parts))
    # One snapshot: a pane that is written in between is in both statements or in none.
    async with conn.transaction(isolation=None if conn.is_in_transaction() else "repeatable_read"):
        rows = await conn.fetch(_STATES, list(ids), segment, *columns)
        if (counts := cache.window(window, rows)) is not None:
            return counts
        total = WindowSum(layout, {r["start_us"]: r["predictions"] for r in rows})
        known: list[tuple[int, PaneSum]] = []
        unknown: dict[SliceKey, PaneState] = {}
        for width, start, _, panes, changes in rows:
            key, state = SliceKey(ids, segment, width, start), PaneState(panes, changes)
            found = cache.get(key, state)
            if found is None:
                unknown[key] = state
            else:
                known.append((start, found))
        total.add(known)
        for at in range(0, len(unknown), SLICES_AT_ONCE):
            keys = list(unknown)[at : at + SLICES_AT_ONCE]
            read = await _slices(conn, ids, layout, segment, keys)
            for key, found in read.items():
                cache.put(key, unknown[key], found)
            total.add((key.start_us, found) for key, found in read.items())
    counts = total.result()
    cache.put_window(window, rows, counts)
    return counts


async def _slices(
    conn: Connection, ids: tuple[int, ...], layout: Layout, segment: str, keys: Sequence[SliceKey]
) -> dict[SliceKey, PaneSum]:
    """The sum of the panes of each slice."""
    columns = [k.width_us for k in keys], [k.start_us for k in keys]
    panes: dict[SliceKey, list[PackedPane]] = {}
    for r in await conn.fetch(_SLICES, list(ids), segment, *columns):
        key = SliceKey(ids, segment, r["width_us"], r["start_us"])
        panes.setdefault(key, []).append(PackedPane(r["counts"], r["sums"], r["predictions"]))
    return {key: PaneSum(layout, found) for key, found in panes.items()}


async def extent(
    conn: Connection, variant_ids: Sequence[int], span: Span, segment: str, pane_us: int
) -> tuple[int | None, int | None]:
    """Start of the first and the last pane in the span with predictions."""
    row = await conn.fetchrow(_EXTENT, list(variant_ids), segment, pane_us, span.start_us, span.end_us)
    return row[0], row[1]
