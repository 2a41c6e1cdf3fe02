"""What a database holds: equal before and after means that nothing was added, taken away or, by digest, changed."""

from __future__ import annotations

from typing import Any

import asyncpg

_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
_ALIVE = frozenset({"lease", "gateway", "migration"})
"""Tables that processes write to without being asked."""


async def row_counts(dsn: str) -> dict[str, int]:
    """Rows by table."""
    return await _by_table(dsn, "count(*)")


async def row_digests(dsn: str) -> dict[str, str]:
    """A digest of every row by table."""
    return await _by_table(dsn, r"coalesce(md5(string_agg(held::text, E'\n' ORDER BY held::text)), '')")


async def _by_table(dsn: str, aggregate: str) -> dict[str, Any]:
    connection = await asyncpg.connect(dsn)
    try:
        tables = [row["tablename"] for row in await connection.fetch(_TABLES)]
        return {
            table: await connection.fetchval(f'SELECT {aggregate} FROM "{table}" held')
            for table in tables
            if table not in _ALIVE
        }
    finally:
        await connection.close()
