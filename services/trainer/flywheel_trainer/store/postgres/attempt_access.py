"""`AttemptAccess` on PostgreSQL."""

from __future__ import annotations

from flywheel_common.granted.access import Access
from flywheel_common.granted.errors import AttemptEnded
from flywheel_common.postgres.pool import Pool, connection

_ACCESS = "SELECT access FROM attempt WHERE engine_id = $1 AND ended_at IS NULL AND access IS NOT NULL"


class PostgresAttemptAccess:
    """`AttemptAccess` over the rows of attempts."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def access_of(self, attempt: str) -> Access:
        async with connection(self._pool) as conn:
            fields = await conn.fetchval(_ACCESS, attempt)
        if fields is None:
            raise AttemptEnded.of(attempt)
        return Access.from_json(fields)
