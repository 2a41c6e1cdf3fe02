"""Panes in PostgreSQL, read, merged and written in bulk."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.windows.panes import PackedPane, PaneAccumulator, PaneKey

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
_ADOPT = "UPDATE pane SET width_us = $1 WHERE width_us = 0"
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
