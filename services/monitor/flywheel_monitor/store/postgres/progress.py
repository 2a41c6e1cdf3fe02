"""The progress of models per partition: the times of their last events, and the time these have reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.windows.support import reached_time, with_recent

_RECENT = """
SELECT model_id, recent_us FROM progress
WHERE model_id = ANY($1::integer[]) AND labels = $2 AND partition = $3
"""
# Arrays of arrays must have equal lengths, hence the texts.
_ADVANCE = """
INSERT INTO progress (labels, partition, model_id, recent_us, reached_us)
SELECT $1, $2, a.model_id, a.recent_us::bigint[], a.reached_us
FROM unnest($3::integer[], $4::text[], $5::bigint[]) AS a (model_id, recent_us, reached_us)
ON CONFLICT (model_id, labels, partition) DO UPDATE
    SET recent_us = excluded.recent_us, reached_us = excluded.reached_us
"""
_REACHED = """
SELECT model_id, partition, reached_us FROM progress WHERE labels = $1 AND reached_us IS NOT NULL
"""


async def advance(
    conn: Connection, partition: int, arrived: Mapping[int, Sequence[int]], *, labels: bool
) -> None:
    """Add the times of predictions or of outcomes (`labels`), by model id and in order of arrival. One writer
    at a time works on a partition."""
    arrived = {model_id: times for model_id, times in sorted(arrived.items()) if times}
    if not arrived:
        return
    before = {r[0]: r[1] for r in await conn.fetch(_RECENT, list(arrived), labels, partition)}
    recent = [with_recent(before.get(model_id, ()), times) for model_id, times in arrived.items()]
    texts = [f"{{{','.join(map(str, times))}}}" for times in recent]
    await conn.execute(_ADVANCE, labels, partition, list(arrived), texts, list(map(reached_time, recent)))


async def reached(conn: Connection, *, labels: bool) -> dict[int, dict[int, int]]:
    """Model id → partition → the time that its predictions or outcomes (`labels`) have reached."""
    found: dict[int, dict[int, int]] = {}
    for r in await conn.fetch(_REACHED, labels):
        found.setdefault(r["model_id"], {})[r["partition"]] = r["reached_us"]
    return found
