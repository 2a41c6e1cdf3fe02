"""How much a database holds: equal before and after means that nothing was added or taken away."""

from __future__ import annotations

import asyncpg

_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
_ALIVE = frozenset({"lease", "gateway", "migration"})
"""Tables that processes write to without being asked."""


async def row_counts(dsn: str) -> dict[str, int]:
    """Rows by table."""
    connection = await asyncpg.connect(dsn)
    try:
        tables = [row["tablename"] for row in await connection.fetch(_TABLES)]
        return {
            table: await connection.fetchval(f'SELECT count(*) FROM "{table}"')
            for table in tables
            if table not in _ALIVE
        }
    finally:
        await connection.close()
