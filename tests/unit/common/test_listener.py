"""A connection that listens: whatever asyncpg raises, the caller gets PostgresUnavailable and the pool its
connection."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from flywheel_common.postgres import listener as listener_module
from flywheel_common.postgres.errors import PostgresUnavailable
from flywheel_common.postgres.listener import Listener


class Connection:
    """Raises `error` when it is to listen; hangs without one while `hangs`."""

    def __init__(self, error: BaseException | None = None, *, hangs: bool = False) -> None:
        self.error, self.hangs = error, hangs
        self.listens = self.closed = False

    def is_closed(self) -> bool:
        return self.closed

    def add_termination_listener(self, _: Any) -> None: ...

    def remove_termination_listener(self, _: Any) -> None: ...

    async def add_listener(self, channel: str, _: Any) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        self.listens = True

    async def remove_listener(self, channel: str, _: Any) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        self.listens = False

    def terminate(self) -> None:
        self.closed = True


class Pool:
    def __init__(self, *connections: Connection) -> None:
        self.free = list(connections)

    async def acquire(self, timeout: float) -> Connection:
        return self.free.pop(0)

    async def release(self, conn: Connection, timeout: float) -> None:
        self.free.append(conn)


def listening(*connections: Connection) -> tuple[Listener, Pool]:
    pool: Any = Pool(*connections)
    return Listener(pool, "changes", lambda _: None), pool


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
async def test_a_connection_that_is_lost_while_it_starts_to_listen(error: Exception) -> None:
    lost, good = Connection(error), Connection()
    listener, pool = listening(lost, good)
    with pytest.raises(PostgresUnavailable):
        await listener.ensure()
    assert (pool.free, lost.closed) == ([good, lost], True)
    assert await listener.ensure()
    assert not await listener.ensure()
    assert good.listens


async def test_a_database_that_hangs_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "LISTEN_SECONDS", 0.05)
    hanging = Connection(hangs=True)
    listener, pool = listening(hanging)
    with pytest.raises(PostgresUnavailable):
        await listener.ensure()
    assert (pool.free, hanging.closed) == ([hanging], True)


async def test_a_cancelled_start_returns_its_connection() -> None:
    hanging = Connection(hangs=True)
    listener, pool = listening(hanging)
    task = asyncio.create_task(listener.ensure())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (pool.free, hanging.closed) == ([hanging], True)


async def test_closing_stops_listening_or_drops_the_connection() -> None:
    good = Connection()
    listener, pool = listening(good)
    await listener.ensure()
    await listener.close()
    assert (pool.free, good.listens, good.closed) == ([good], False, False)
    await listener.ensure()
    good.error = asyncpg.InternalClientError("cannot switch to state 12")
    await listener.close()
    assert (pool.free, good.closed) == ([good], True)


async def test_a_cancelled_close_returns_its_connection() -> None:
    conn = Connection()
    listener, pool = listening(conn)
    await listener.ensure()
    conn.hangs = True
    task = asyncio.create_task(listener.close())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (pool.free, conn.closed) == ([conn], True)
