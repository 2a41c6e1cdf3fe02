"""The access of joins, in PostgreSQL (port: offline.ports.JoinAccess), and the key of their tokens."""

from __future__ import annotations

import json
from dataclasses import asdict

from flywheel_common.granted.access import Access
from flywheel_common.granted.errors import AttemptEnded
from flywheel_common.postgres.pool import Pool, connection

_GRANT = """
INSERT INTO join_access (join_name, attempt, access) VALUES ($1, $2, $3::jsonb)
ON CONFLICT (join_name) DO UPDATE
SET attempt = excluded.attempt, access = excluded.access, version = nextval('join_access_version')
"""
_REVOKE = "DELETE FROM join_access WHERE join_name = $1"
_VERSION = "SELECT version FROM join_access WHERE attempt = $1"
_ACCESS = "SELECT version, access FROM join_access WHERE attempt = $1"
_KEY = "SELECT token_key FROM installation"
REMEMBERED = 16
"""Accesses that are kept parsed: one of many files takes milliseconds to read, and each request needs it."""


class PostgresJoinAccess:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parsed: dict[str, tuple[int, Access]] = {}

    async def grant(self, join: str, attempt: str, access: Access) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_GRANT, join, attempt, json.dumps(asdict(access)))

    async def revoke(self, join: str) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_REVOKE, join)

    async def access_of(self, attempt: str) -> Access:
        known = self._parsed.get(attempt)
        async with connection(self._pool) as conn:
            if known is not None and known[0] == await conn.fetchval(_VERSION, attempt):
                return known[1]
            row = await conn.fetchrow(_ACCESS, attempt)
        self._parsed.pop(attempt, None)
        if row is None:
            raise AttemptEnded.of(attempt)
        access = Access.from_json(json.loads(row["access"]))
        self._parsed[attempt] = row["version"], access
        if len(self._parsed) > REMEMBERED:
            self._parsed.pop(next(iter(self._parsed)))
        return access


async def read_token_key(pool: Pool) -> bytes:
    """The key of the tokens of attempts, which all processes on one database share."""
    async with connection(pool) as conn:
        key: bytes = await conn.fetchval(_KEY)
    return key
