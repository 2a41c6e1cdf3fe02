"""The generation of the online store, in PostgreSQL (port: ingest.generations.GenerationCounter)."""

from __future__ import annotations

from flywheel_common.postgres.pool import Pool, connection

_GET = "SELECT generation FROM online_generation"
_NEXT = "UPDATE online_generation SET generation = generation + 1 WHERE generation = $1 RETURNING generation"


class PostgresGenerations:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def generation(self) -> int:
        async with connection(self._pool) as conn:
            return int(await conn.fetchval(_GET))

    async def next_generation(self, after: int) -> int:
        async with connection(self._pool) as conn:
            return int(await conn.fetchval(_NEXT, after) or await conn.fetchval(_GET))
