"""Tombstones of erased entities, in PostgreSQL, with a copy in the memory of each process that reads rows."""

from __future__ import annotations

import asyncio
import json

from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.pool import Pool, connection
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.ingest.tombstones import Tombstone, Tombstones

log = get_logger(__name__)

REFRESH_SECONDS = 1.0
_ALL = "SELECT project, entity, key_hash, erased_at, barriers FROM erased_entity"
_PUT = """
INSERT INTO erased_entity AS e (project, entity, key_hash, erased_at, barriers)
VALUES ($1, $2, $3, $4, $5::jsonb)
ON CONFLICT (project, entity, key_hash)
DO UPDATE SET erased_at = greatest(e.erased_at, $4), barriers = $5::jsonb
"""
_ADD_GARBAGE = "INSERT INTO object_garbage (key) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"
_LIST_GARBAGE = "SELECT key FROM object_garbage ORDER BY key"
_REMOVE_GARBAGE = "DELETE FROM object_garbage WHERE key = $1"


class PostgresTombstones:
    """Tombstones, and the objects that erasure left to delete."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._cached: dict[str, dict[str, dict[bytes, Tombstone]]] = {}

    def of(self, project: str) -> Tombstones:
        """The tombstones of a project, as of the last refresh."""
        return self._cached.get(project, {})

    async def refresh(self) -> None:
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_ALL)
        read: dict[str, dict[str, dict[bytes, Tombstone]]] = {}
        for r in rows:
            barriers = {
                s: {int(p): int(o) for p, o in b.items()} for s, b in json.loads(r["barriers"]).items()
            }
            tombstones = read.setdefault(r["project"], {}).setdefault(r["entity"], {})
            tombstones[bytes(r["key_hash"])] = Tombstone(r["erased_at"], barriers)
        self._cached = read

    async def follow(self) -> None:
        """Refresh every REFRESH_SECONDS until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.refresh()
            except FlywheelError as error:
                log.warning("tombstones not refreshed", reason=error.reason)

    async def put(self, project: str, entity: str, key_hash: bytes, tombstone: Tombstone) -> None:
        barriers = {s: {str(p): o for p, o in b.items()} for s, b in tombstone.barriers.items()}
        async with connection(self._pool) as conn:
            await conn.execute(_PUT, project, entity, key_hash, tombstone.erased_at, json.dumps(barriers))
        await self.refresh()

    async def add_garbage(self, keys: list[str]) -> None:
        """Remember objects to delete."""
        async with connection(self._pool) as conn:
            await conn.execute(_ADD_GARBAGE, keys)

    async def garbage(self) -> list[str]:
        """The keys of the objects to delete."""
        async with connection(self._pool) as conn:
            return [r["key"] for r in await conn.fetch(_LIST_GARBAGE)]

    async def deleted(self, key: str) -> None:
        """Forget an object that was deleted."""
        async with connection(self._pool) as conn:
            await conn.execute(_REMOVE_GARBAGE, key)
