"""How far batch views were materialized, in PostgreSQL."""

from __future__ import annotations

from flywheel_common.postgres import Pool, connection

_GET = "SELECT end_time FROM materialized WHERE project = $1 AND view = $2 AND version = $3"
_LIST = "SELECT view, version, newest FROM materialized WHERE project = $1"
_PUT = """
INSERT INTO materialized AS m (project, view, version, end_time, newest) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (project, view, version) DO UPDATE SET end_time = greatest(m.end_time, $4), newest = greatest(m.newest, $5)
"""


class PostgresMaterialized:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def end_time(self, project: str, view: str, version: int) -> int | None:
        """Microseconds; None when it was never materialized."""
        async with connection(self._pool) as conn:
            found: int | None = await conn.fetchval(_GET, project, view, version)
        return found

    async def newest(self, project: str) -> dict[tuple[str, int], int]:
        async with connection(self._pool) as conn:
            return {(r["view"], r["version"]): r["newest"] for r in await conn.fetch(_LIST, project)}

    async def done(self, project: str, view: str, version: int, end_time: int, newest: int) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_PUT, project, view, version, end_time, newest)
