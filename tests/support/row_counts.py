"""The contents of a database, to compare before and after: row counts, and digests of all rows."""

from __future__ import annotations

from typing import Any

import asyncpg

from flywheel_common.postgres.pool import Pool, connection

_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
_BACKGROUND = frozenset({"lease", "gateway", "migration"})
"""Tables that background tasks write to."""


async def row_counts(dsn: str) -> dict[str, int]:
    """The number of rows per table."""
    return await _by_table(dsn, "count(*)")


async def row_digests(dsn: str) -> dict[str, str]:
    """A digest of all rows per table."""
    return await _by_table(dsn, r"coalesce(md5(string_agg(held::text, E'\n' ORDER BY held::text)), '')")


async def _by_table(dsn: str, aggregate: str) -> dict[str, Any]:
    connection = await asyncpg.connect(dsn)
    try:
        tables = [row["tablename"] for row in await connection.fetch(_TABLES)]
        return {
            table: await connection.fetchval(f'SELECT {aggregate} FROM "{table}" held')
            for table in tables
            if table not in _BACKGROUND
        }
    finally:
        await connection.close()


async def count(pool: Pool, table: str) -> int:
    """The number of rows of one table."""
    async with connection(pool) as conn:
        return int(await conn.fetchval(f"SELECT count(*) FROM {table}"))
