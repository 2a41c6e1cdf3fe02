"""A connection that listens for notifications on a channel and is opened again after a loss."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg

from flywheel_common.postgres.errors import PostgresUnavailable
from flywheel_common.postgres.pool import DRIVER_ERRORS, Connection, Pool, acquire, alive, release

LISTEN_SECONDS = 5.0
"""How long a new connection may take until it listens."""
UNLISTEN_SECONDS = 2.0


class Listener:
    """Calls `on_notification(payload)` for each notification on `channel`, and `on_loss()` when the
    connection is lost. Not for concurrent use. Call `close` at the end."""

    def __init__(
        self,
        pool: Pool,
        channel: str,
        on_notification: Callable[[str], None],
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._channel = channel
        self._on_notification = on_notification
        self._on_loss = on_loss
        self._conn: Connection | None = None

    async def ensure(self) -> bool:
        """Listens. True if it did not before: earlier notifications may be lost. Raises
        PostgresUnavailable."""
        if alive(self._conn):
            return False
        await self.close()
        conn = await acquire(self._pool)
        try:
            async with asyncio.timeout(LISTEN_SECONDS):
                conn.add_termination_listener(self._lost)
                await conn.add_listener(self._channel, self._notified)
        except BaseException as error:
            await self._drop(conn)
            if isinstance(error, DRIVER_ERRORS):
                raise PostgresUnavailable("PostgreSQL does not answer: try again.") from error
            raise
        self._conn = conn
        return True

    async def close(self) -> None:
        """Returns the connection to the pool."""
        conn, self._conn = self._conn, None
        if conn is None:
            return
        try:
            if alive(conn):
                async with asyncio.timeout(UNLISTEN_SECONDS):
                    await conn.remove_listener(self._channel, self._notified)
                conn.remove_termination_listener(self._lost)
        except BaseException as error:
            await self._drop(conn)
            if not isinstance(error, DRIVER_ERRORS):
                raise
        else:
            await release(self._pool, conn)

    async def _drop(self, conn: Connection) -> None:
        """Closes a connection in an unknown state, which no other user of the pool may get."""
        with suppress(asyncpg.InterfaceError):
            conn.terminate()
        await release(self._pool, conn)

    def _notified(self, _conn: Any, _pid: int, _channel: str, payload: object) -> None:
        self._on_notification(str(payload))

    def _lost(self, _conn: Any) -> None:
        self._on_loss()
