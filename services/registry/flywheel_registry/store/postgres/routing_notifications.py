"""Notifications of routing changes by LISTEN, on a connection of its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg

from flywheel_common.postgres.errors import PostgresUnavailable
from flywheel_common.postgres.pool import Pool, alive, connection
from flywheel_registry.store.postgres import statements as sql

CHANNEL = "flywheel_serving"
LISTEN_SECONDS = 5.0
"""How long a new connection may take."""


class PostgresRoutingNotifications:
    """`RoutingNotifications` by LISTEN. Call `close` at the end."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._conn: Any = None
        self._changed: set[str] = set()
        self._woken = asyncio.Event()

    async def next(self, timeout_seconds: float) -> set[str] | None:
        if not alive(self._conn):
            await self.close()
            await self._listen()
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        self._woken.clear()
        found, self._changed = self._changed, set()
        return found

    async def _listen(self) -> None:
        try:
            async with asyncio.timeout(LISTEN_SECONDS):
                conn = await self._pool.acquire()
                conn.add_termination_listener(lambda *_: self._woken.set())
                await conn.add_listener(CHANNEL, self._on_notification)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            raise PostgresUnavailable("PostgreSQL does not answer: retry.") from error
        self._conn = conn

    def _on_notification(self, _conn: object, _pid: int, _channel: str, payload: object) -> None:
        self._changed.add(str(payload))
        self._woken.set()

    async def generations(self) -> dict[str, int]:
        async with connection(self._pool) as conn:
            return {row["model"]: row["generation"] for row in await conn.fetch(sql.GENERATIONS)}

    async def close(self) -> None:
        """Return the connection to the pool."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                if alive(conn):
                    await conn.remove_listener(CHANNEL, self._on_notification)
                await self._pool.release(conn, timeout=2.0)
