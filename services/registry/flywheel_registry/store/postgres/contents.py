"""Stored contents, their blocks, and what deleted versions still hold, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from flywheel_common.postgres.pool import Connection

LOCK_DIGEST = "SELECT pg_advisory_xact_lock(hashtextextended($1, 11))"
BLOCK_DIGESTS = "SELECT digests FROM artifact_block WHERE sha256 = $1"
PUT_BLOCK_DIGESTS = "INSERT INTO artifact_block (sha256, digests) VALUES ($1, $2) ON CONFLICT DO NOTHING"
DECLARED_DIGESTS = "SELECT DISTINCT sha256 FROM artifact WHERE sha256 = ANY($1::text[])"
FORGET_DIGEST = "DELETE FROM artifact_block WHERE sha256 = $1"
PURGEABLE_VERSIONS = "SELECT count(*) FROM model_version WHERE deleted_at < $1 AND NOT purged"
# The row stays for its evidence and its number. A restoration at the same time waits, and finds it purged.
PURGE_VERSIONS = """
WITH old AS (
  SELECT model, number FROM model_version WHERE deleted_at < $1 AND NOT purged LIMIT $2 FOR UPDATE
), purged AS (
  UPDATE model_version v SET purged = true, golden_tensors = '[]', golden_data = '{}'
  FROM old WHERE v.model = old.model AND v.number = old.number RETURNING v.model, v.number
), released AS (
  DELETE FROM artifact a USING purged p WHERE a.model = p.model AND a.version = p.number
)
SELECT count(*) FROM purged
"""


class PostgresContents:
    """Part of `PostgresRecords`: stored contents. `_conn` is the transaction's connection."""

    _conn: Connection

    async def lock_digest(self, sha256: str) -> None:
        await self._conn.execute(LOCK_DIGEST, sha256)

    async def block_digests(self, sha256: str) -> bytes | None:
        found: bytes | None = await self._conn.fetchval(BLOCK_DIGESTS, sha256)
        return found

    async def put_block_digests(self, sha256: str, digests: bytes) -> None:
        await self._conn.execute(PUT_BLOCK_DIGESTS, sha256, digests)

    async def declared_digests(self, digests: Sequence[str]) -> set[str]:
        return {row["sha256"] for row in await self._conn.fetch(DECLARED_DIGESTS, list(digests))}

    async def forget_digest(self, sha256: str) -> None:
        await self._conn.execute(FORGET_DIGEST, sha256)

    async def purgeable_versions(self, before: datetime) -> int:
        count: int = await self._conn.fetchval(PURGEABLE_VERSIONS, before)
        return count

    async def purge_versions(self, before: datetime, limit: int) -> int:
        count: int = await self._conn.fetchval(PURGE_VERSIONS, before, limit)
        return count
