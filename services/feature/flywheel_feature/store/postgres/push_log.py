"""The files of the push log, in PostgreSQL (port: ingest.push_log.PushedSegments)."""

from __future__ import annotations

from flywheel_common.postgres.pool import Pool, connection, transaction

_ADD = "INSERT INTO pushed_segment (project, view, key, row_count) VALUES ($1, $2, $3, $4)"
_KEYS = "SELECT id, key FROM pushed_segment WHERE project = $1 AND view = $2 ORDER BY id"
_REPLACE = "UPDATE pushed_segment SET key = $2, row_count = $3 WHERE key = $1"
_REMOVE = "DELETE FROM pushed_segment WHERE key = $1"
_GARBAGE = "INSERT INTO object_garbage (key) VALUES ($1) ON CONFLICT DO NOTHING"


class PostgresPushLog:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, project: str, view: str, key: str, rows: int) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_ADD, project, view, key, rows)

    async def keys(self, project: str, view: str) -> list[tuple[int, str]]:
        async with connection(self._pool) as conn:
            return [(r["id"], r["key"]) for r in await conn.fetch(_KEYS, project, view)]

    async def replace(self, old: str, new: str, rows: int) -> None:
        """Replace the file `old`, which becomes garbage, by `new`; without rows it is removed."""
        async with transaction(self._pool) as conn:
            await conn.execute(_GARBAGE, old)
            if rows:
                await conn.execute(_REPLACE, old, new, rows)
            else:
                await conn.execute(_REMOVE, old)
