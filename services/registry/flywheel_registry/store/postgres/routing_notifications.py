"""Notifications of routing changes by LISTEN, on a connection of its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from flywheel_common.postgres.listener import Listener
from flywheel_common.postgres.pool import Pool, connection
from flywheel_registry.store.postgres import statements as sql

CHANNEL = "flywheel_serving"


class PostgresRoutingNotifications:
    """`RoutingNotifications` by LISTEN. Call `close` at the end."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._changed: set[str] = set()
        self._woken = asyncio.Event()
        self._listener = Listener(pool, CHANNEL, self._on_notification, self._woken.set)

    async def next(self, timeout_seconds: float) -> set[str] | None:
        if await self._listener.ensure():
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        self._woken.clear()
        found, self._changed = self._changed, set()
        return found

    def _on_notification(self, payload: str) -> None:
        self._changed.add(payload)
        self._woken.set()

    async def generations(self) -> dict[str, int]:
        async with connection(self._pool) as conn:
            return {row["model"]: row["generation"] for row in await conn.fetch(sql.GENERATIONS)}

    async def close(self) -> None:
        """Return the connection to the pool."""
        await self._listener.close()
