"""The archive queue in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Sequence

from flywheel_common.arrays import Mask
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.archive.queue import Segment, Waiting, pack_kept
from flywheel_monitor.ingest.batches import PredictionColumns

_WAITING = """
SELECT m.name AS model, sum(q.rows) AS rows,
    extract(epoch FROM clock_timestamp() - max(q.enqueued_at)) AS idle,
    extract(epoch FROM clock_timestamp() - min(q.enqueued_at)) AS age
FROM archive_queue q JOIN model m ON m.id = q.model_id WHERE q.segment_id IS NULL GROUP BY m.name
"""
_QUEUE = """
INSERT INTO archive_queue (model_id, rows, kept, payload)
SELECT * FROM unnest($1::integer[], $2::integer[], $3::bytea[], $4::bytea[])
"""
_QUEUE_LARGE = "INSERT INTO archive_queue (model_id, rows, kept, payload) VALUES ($1, $2, $3, $4)"
LARGE_BYTES = 64 * 1024
"""Payloads that are queued one by one: PostgreSQL copies the elements of arrays twice more."""
_CANDIDATES = """
SELECT q.id, q.model_id, q.rows FROM archive_queue q JOIN model m ON m.id = q.model_id
WHERE q.segment_id IS NULL AND m.name = $1 ORDER BY q.id LIMIT 20000
"""
_ADD_SEGMENT = "INSERT INTO archive_segment (model_id, rows) VALUES ($1, $2) RETURNING id"
_ASSIGN = "UPDATE archive_queue SET segment_id = $1 WHERE id = ANY($2::bigint[]) AND segment_id IS NULL"
_PENDING = """
SELECT s.id, m.name FROM archive_segment s JOIN model m ON m.id = s.model_id
WHERE NOT s.complete ORDER BY s.id
"""
_BATCHES = "SELECT kept, payload FROM archive_queue WHERE segment_id = $1 ORDER BY id"
_COMPLETE = (
    "UPDATE archive_segment SET complete = true, objects = $2, last_event = $3, rows = $4 WHERE id = $1"
)
_FORGET = "DELETE FROM archive_queue WHERE segment_id = $1"
_STATUS = """
SELECT coalesce(sum(s.rows), 0) AS rows, max(s.last_event) AS last_event
FROM archive_segment s JOIN model m ON m.id = s.model_id WHERE m.name = $1 AND s.complete
"""


async def queue_batches(conn: Connection, rows: Sequence[tuple[int, PredictionColumns, Mask]]) -> None:
    """Queue the new rows of batches (model id, batch, mask of the new rows)."""
    queued: list[tuple[int, int, bytes, bytes]] = []
    for model_id, batch, new in rows:
        queued += [
            (model_id, int(kept.sum()), pack_kept(kept), record.payload)
            for record, kept in batch.kept_records(new)
        ]
    for row in queued:
        if len(row[3]) >= LARGE_BYTES:
            await conn.execute(_QUEUE_LARGE, *row)
    if small := [row for row in queued if len(row[3]) < LARGE_BYTES]:
        await conn.execute(_QUEUE, *map(list, zip(*small, strict=True)))


class ArchiveRows:
    """`ArchiveQueue` on the transaction's connection."""

    _conn: Connection

    async def waiting(self) -> list[Waiting]:
        rows = await self._conn.fetch(_WAITING)
        return [Waiting(r["model"], int(r["rows"]), float(r["idle"]), float(r["age"])) for r in rows]

    async def cut_segment(self, model: str, at_least: int) -> None:
        chosen, rows = [], 0
        for candidate in await self._conn.fetch(_CANDIDATES, model):
            if rows >= at_least:
                break
            chosen.append(candidate)
            rows += candidate["rows"]
        if chosen:
            segment = await self._conn.fetchval(_ADD_SEGMENT, chosen[0]["model_id"], rows)
            await self._conn.execute(_ASSIGN, segment, [c["id"] for c in chosen])

    async def pending_segments(self) -> list[Segment]:
        return [Segment(r["id"], r["name"]) for r in await self._conn.fetch(_PENDING)]

    async def segment_batches(self, segment: int) -> list[tuple[bytes, bytes]]:
        return [(r["payload"], r["kept"]) for r in await self._conn.fetch(_BATCHES, segment)]

    async def complete_segment(
        self, segment: int, objects: Sequence[str], rows: int, last_event_us: int
    ) -> None:
        await self._conn.execute(_COMPLETE, segment, json.dumps(sorted(objects)), last_event_us, rows)
        await self._conn.execute(_FORGET, segment)

    async def archived(self, model: str) -> tuple[int, int | None]:
        row = await self._conn.fetchrow(_STATUS, model)
        return int(row["rows"]), row["last_event"]
