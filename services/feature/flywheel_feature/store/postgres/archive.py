"""Archived segments, archived positions and the hashes of seen event ids, in PostgreSQL."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from flywheel_common.postgres.pool import Pool, connection, transaction
from flywheel_feature.ingest.archive import NewSegment
from flywheel_feature.tables.ports import Segment

_SEEN = """
INSERT INTO seen_event (source, id_hash, partition, "offset", position)
SELECT $1, h, $3, o, p FROM unnest($2::bigint[], $4::bigint[], $5::integer[]) AS t(h, o, p)
ON CONFLICT (source, id_hash) DO NOTHING
"""
_FIRST = """
SELECT s.id_hash, s.partition, s."offset", s.position FROM seen_event s
WHERE s.source = $1 AND s.id_hash = ANY($2::bigint[])
"""
_MOVE = """
INSERT INTO archive_position AS a (project, source, partition, next_offset, event_count)
VALUES ($1, $2, $3, $5, $6)
ON CONFLICT (project, source, partition) DO UPDATE SET next_offset = $5, event_count = a.event_count + $6
WHERE a.next_offset = $4 RETURNING true
"""
_SEGMENT = """
INSERT INTO archive_segment
    (project, source, key, event_count, min_time, max_time, partition, first_offset, next_offset)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
_POSITION = "SELECT next_offset FROM archive_position WHERE project = $1 AND source = $2 AND partition = $3"
_POSITIONS = "SELECT source, partition, next_offset, event_count FROM archive_position WHERE project = $1"
_SEGMENTS = (
    "SELECT * FROM archive_segment WHERE project = $1 AND source = $2 ORDER BY partition, first_offset"
)
_REPLACE = """
UPDATE archive_segment AS s SET key = $2, event_count = $3, min_time = $4, max_time = $5
FROM archive_segment AS old
WHERE old.key = $1 AND s.id = old.id RETURNING s.project, s.source, s.partition, old.event_count
"""
_REMOVE = "DELETE FROM archive_segment WHERE key = $1 RETURNING project, source, partition, event_count"
_FEWER = """
UPDATE archive_position SET event_count = event_count - $4
WHERE project = $1 AND source = $2 AND partition = $3
"""
_GARBAGE = "INSERT INTO object_garbage (key) VALUES ($1) ON CONFLICT DO NOTHING"


class PostgresArchive:
    """The archive, for its readers, for the archiver and for erasure."""

    def __init__(self, pool: Pool, bucket: str) -> None:
        self._pool = pool
        self._bucket = bucket

    async def first_seen(
        self, source: str, event_ids: Sequence[str], partition: int, offsets: Sequence[int]
    ) -> list[bool]:
        hashes = [
            int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "big", signed=True)
            for i in event_ids
        ]
        places: list[int] = []
        place, last = 0, -1
        for offset in offsets:
            place = place + 1 if offset == last else 0
            last = offset
            places.append(place)
        async with transaction(self._pool) as conn:
            done = await conn.execute(_SEEN, source, hashes, partition, list(offsets), places)
            if done == f"INSERT 0 {len(hashes)}":
                return [True] * len(hashes)
            rows = await conn.fetch(_FIRST, source, hashes)
        first = {r["id_hash"]: (r["partition"], r["offset"], r["position"]) for r in rows}
        return [first[h] == (partition, o, p) for h, o, p in zip(hashes, offsets, places, strict=True)]

    async def archived_offset(self, project: str, source: str, partition: int) -> int:
        async with connection(self._pool) as conn:
            return int(await conn.fetchval(_POSITION, project, source, partition) or 0)

    async def archived(self, project: str) -> dict[str, dict[int, tuple[int, int]]]:
        """source id → partition → (next offset, events archived)."""
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_POSITIONS, project)
        found: dict[str, dict[int, tuple[int, int]]] = {}
        for row in rows:
            found.setdefault(row["source"], {})[row["partition"]] = row["next_offset"], row["event_count"]
        return found

    async def archived_offsets(self, project: str, source: str) -> Mapping[int, int]:
        return {p: offset for p, (offset, _) in (await self.archived(project)).get(source, {}).items()}

    async def segments(self, project: str, source: str) -> list[Segment]:
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_SEGMENTS, project, source)
        return [
            Segment(
                uri=f"s3://{self._bucket}/{r['key']}",
                partition=r["partition"],
                first_offset=r["first_offset"],
                next_offset=r["next_offset"],
                min_time=r["min_time"],
                max_time=r["max_time"],
                event_count=r["event_count"],
            )
            for r in rows
        ]

    async def commit(self, segment: NewSegment) -> bool:
        s = segment
        source = s.source.project, s.source.id
        offsets = s.first_offset, s.next_offset
        async with transaction(self._pool) as conn:
            if not await conn.fetchval(_MOVE, *source, s.partition, *offsets, s.event_count):
                return False
            if s.key:
                content = s.event_count, s.min_time, s.max_time
                await conn.execute(_SEGMENT, *source, s.key, *content, s.partition, *offsets)
        return True

    async def replace_segment(self, old: str, new: str, events: int, min_time: int, max_time: int) -> None:
        """Replace the object `old`, which becomes garbage, by `new`; without events remove the segment."""
        async with transaction(self._pool) as conn:
            row = (
                await conn.fetchrow(_REPLACE, old, new, events, min_time, max_time)
                if events
                else await conn.fetchrow(_REMOVE, old)
            )
            if row is not None:
                gone = row["event_count"] - events
                await conn.execute(_FEWER, row["project"], row["source"], row["partition"], gone)
                await conn.execute(_GARBAGE, old)
