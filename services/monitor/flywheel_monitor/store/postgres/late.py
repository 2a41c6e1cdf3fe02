"""Predictions that arrived after their window was judged, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_common.arrays import Ints
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.windows.lateness import late_rows
from flywheel_monitor.windows.span import Span

_FRONTIERS = """
SELECT id, closed_until, labelled_until FROM model_version WHERE id = ANY($1::integer[]) ORDER BY id FOR SHARE
"""
_ADD = """
INSERT INTO late_pane AS l (model_version_id, start_us, partition, predictions)
SELECT $1, a.start_us, $2, a.predictions FROM unnest($3::bigint[], $4::bigint[]) AS a (start_us, predictions)
ON CONFLICT (model_version_id, start_us, partition)
    DO UPDATE SET predictions = l.predictions + excluded.predictions, pending = true
"""
_PENDING = """
SELECT DISTINCT start_us / $2 * $2 AS start_us FROM late_pane
WHERE model_version_id = $1 AND pending ORDER BY 1 LIMIT $3
"""
_TAKE = """
UPDATE late_pane SET pending = false
WHERE model_version_id = $1 AND start_us >= $2 AND start_us < $3 AND pending
"""
_SUM = """
SELECT coalesce(sum(predictions), 0)::bigint FROM late_pane
WHERE model_version_id = $1 AND start_us >= $2 AND start_us < $3
"""


async def add_late(
    conn: Connection, partition: int, arrived: Mapping[int, Ints], pane_us: int
) -> dict[int, int]:
    """Record which of the new predictions (version id → event times) are late; version id → how many came
    when no more judgement of their window was due. One writer at a time works on a partition. Under the lock
    a judgement either counts these predictions or comes before them."""
    too_late: dict[int, int] = {}
    for r in await conn.fetch(_FRONTIERS, sorted(arrived)):
        late = late_rows(arrived[r["id"]], r["closed_until"], r["labelled_until"], pane_us)
        if late.panes:
            starts, counts = zip(*sorted(late.panes.items()), strict=True)
            await conn.execute(_ADD, r["id"], partition, list(starts), list(counts))
            too_late[r["id"]] = late.too_late
    return too_late


class LateRows:
    """`LatePredictions` on the transaction's connection."""

    _conn: Connection

    async def late_windows(self, version_id: int, window_us: int, limit: int) -> list[Span]:
        rows = await self._conn.fetch(_PENDING, version_id, window_us, limit)
        return [Span(r["start_us"], r["start_us"] + window_us) for r in rows]

    async def take_late(self, version_id: int, span: Span) -> None:
        await self._conn.execute(_TAKE, version_id, span.start_us, span.end_us)

    async def late(self, version_id: int, span: Span) -> int:
        return int(await self._conn.fetchval(_SUM, version_id, span.start_us, span.end_us))
