"""Tombstones of erased entities in PostgreSQL, held in memory by every process that reads events or rows."""

from __future__ import annotations

import asyncio
import json

from flywheel_common.errors import Unavailable
from flywheel_common.postgres.pool import Pool, connection
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.ingest.tombstones import Tombstone, Tombstones

log = get_logger(__name__)

REFRESH_SECONDS = 1.0
_ALL = "SELECT project, entity, key_hash, erased_at, barriers FROM erased_entity"
_PUT = """
INSERT INTO erased_entity AS e (project, entity, key_hash, erased_at, barriers) VALUES ($1, $2, $3, $4, $5::jsonb)
ON CONFLICT (project, entity, key_hash) DO UPDATE SET erased_at = greatest(e.erased_at, $4), barriers = $5::jsonb
"""
_GARBAGE = "INSERT INTO object_garbage (key) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"
_WASTE = "SELECT key FROM object_garbage ORDER BY key"
_GONE = "DELETE FROM object_garbage WHERE key = $1"


class PostgresTombstones:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._held: dict[str, dict[str, dict[bytes, Tombstone]]] = {}

    def of(self, project: str) -> Tombstones:
        """As they were at the last refresh."""
        return self._held.get(project, {})

    async def refresh(self) -> None:
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_ALL)
        held: dict[str, dict[str, dict[bytes, Tombstone]]] = {}
        for r in rows:
            barriers = {
                s: {int(p): int(o) for p, o in b.items()} for s, b in json.loads(r["barriers"]).items()
            }
            stones = held.setdefault(r["project"], {}).setdefault(r["entity"], {})
            stones[bytes(r["key_hash"])] = Tombstone(r["erased_at"], barriers)
        self._held = held

    async def follow(self) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.refresh()
            except Unavailable as error:
                log.warning("tombstones not refreshed", reason=error.reason)

    async def put(self, project: str, entity: str, key_hash: bytes, stone: Tombstone) -> None:
        barriers = {s: {str(p): o for p, o in b.items()} for s, b in stone.barriers.items()}
        async with connection(self._pool) as conn:
            await conn.execute(_PUT, project, entity, key_hash, stone.erased_at, json.dumps(barriers))
        await self.refresh()

    async def add_garbage(self, keys: list[str]) -> None:
        """Objects to delete, remembered until they are."""
        async with connection(self._pool) as conn:
            await conn.execute(_GARBAGE, keys)

    async def garbage(self) -> list[str]:
        async with connection(self._pool) as conn:
            return [r["key"] for r in await conn.fetch(_WASTE)]

    async def deleted(self, key: str) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(_GONE, key)
