"""Up to which event time and from which files batch views were materialized, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_common.postgres.pool import Pool, connection
from flywheel_feature.tables.ports import SeenFile

_SEEN = (
    "SELECT uri, stamp, due, read_at FROM materialized_file WHERE project = $1 AND view = $2 AND version = $3"
)
_MARK = """
INSERT INTO materialized_file (project, view, version, uri, stamp, due, read_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (project, view, version, uri) DO UPDATE SET stamp = $5, due = $6, read_at = $7
"""
_MARK_DUE = """
INSERT INTO materialized_file AS f (project, view, version, uri, stamp, due, read_at)
VALUES ($1, $2, $3, $4, '', $5, $6)
ON CONFLICT (project, view, version, uri)
DO UPDATE SET due = least(nullif(f.due, 0), $5), read_at = least(nullif(f.read_at, 0), $6)
"""
_DUE = """
SELECT project, view, version, min(due) AS due FROM materialized_file
WHERE due > 0 AND due <= $1 GROUP BY project, view, version
"""
_FORGET = "DELETE FROM materialized_file WHERE project = $1 AND view = $2 AND version = $3"
_LIST = "SELECT view, version, newest FROM materialized WHERE project = $1"
_PUT = """
INSERT INTO materialized AS m (project, view, version, end_time, newest) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (project, view, version)
DO UPDATE SET end_time = greatest(m.end_time, $4), newest = greatest(m.newest, $5)
"""


class PostgresMaterialized:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def newest(self, project: str) -> dict[tuple[str, int], int]:
        async with connection(self._pool) as conn:
            return {(r["view"], r["version"]): r["newest"] for r in await conn.fetch(_LIST, project)}

    async def done(self, project: str, view: str, version: int, end_time: int, newest: int) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_PUT, project, view, version, end_time, newest)

    async def seen(self, project: str, view: str, version: int) -> Mapping[str, SeenFile]:
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_SEEN, project, view, version)
        return {r["uri"]: SeenFile(r["stamp"], r["due"], r["read_at"]) for r in rows}

    async def mark_seen(self, project: str, view: str, version: int, uri: str, seen: SeenFile) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_MARK, project, view, version, uri, seen.stamp, seen.due, seen.read_at)

    async def mark_due(self, project: str, view: str, version: int, uri: str, later: SeenFile) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_MARK_DUE, project, view, version, uri, later.due, later.read_at)

    async def due(self, now: int) -> Mapping[tuple[str, str, int], int]:
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_DUE, now)
        return {(r["project"], r["view"], r["version"]): r["due"] for r in rows}

    async def forget_files(self, project: str, view: str, version: int) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_FORGET, project, view, version)
