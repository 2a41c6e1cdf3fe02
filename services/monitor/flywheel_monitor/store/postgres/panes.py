"""Panes in PostgreSQL, read, merged and written in bulk."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.windows.panes import PackedPane, PaneAccumulator, PaneKey

_READ = """
SELECT p.shadow, p.segment, p.start_us, p.predictions, p.counts, p.sums
FROM unnest($3::boolean[], $4::text[], $5::bigint[]) AS k (shadow, segment, start_us)
JOIN pane p ON p.model_version_id = $1 AND p.partition = $2
    AND p.shadow = k.shadow AND p.segment = k.segment AND p.start_us = k.start_us
"""
_WRITE = """
INSERT INTO pane (model_version_id, partition, shadow, segment, start_us, predictions, counts, sums)
SELECT $1, $2, * FROM unnest($3::boolean[], $4::text[], $5::bigint[], $6::bigint[], $7::bytea[], $8::bytea[])
ON CONFLICT (model_version_id, shadow, segment, start_us, partition)
DO UPDATE SET predictions = excluded.predictions, counts = excluded.counts, sums = excluded.sums
"""


async def merge_panes(conn: Connection, version_id: int, partition: int, added: PaneAccumulator) -> None:
    """Add to the stored panes. Only the consumer of the partition writes them, so that nothing changes
    between read and write."""
    keys = added.touched()
    columns = ([k.shadow for k in keys], [k.segment for k in keys], [k.start_us for k in keys])
    rows = await conn.fetch(_READ, version_id, partition, *columns)
    stored = {
        PaneKey(r["shadow"], r["segment"], r["start_us"]): PackedPane(
            r["counts"], r["sums"], r["predictions"]
        )
        for r in rows
    }
    merged = added.merge(stored)
    panes: Sequence[PackedPane] = [merged[k] for k in keys]
    await conn.execute(
        _WRITE,
        version_id,
        partition,
        *columns,
        [p.predictions for p in panes],
        [p.counts for p in panes],
        [p.sums for p in panes],
    )
