"""Errors of a connection that PostgreSQL ended while a block was using it, as asyncpg raises them."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from flywheel_common.errors import Unavailable
from flywheel_common.postgres.pool import connection

RELEASED = "cannot call Connection.fetchval(): connection has been released back to the pool"


class LostConnection:
    """Fails each statement; once asyncpg has detached it from the pool, `terminate` fails too."""

    def __init__(self, error: Exception, *, closed: bool = False) -> None:
        self._error = error
        self._closed = closed

    def is_closed(self) -> bool:
        return self._closed

    async def fetchval(self, statement: str) -> Any:
        raise self._error

    def terminate(self) -> None:
        raise asyncpg.InterfaceError(RELEASED)


class Pool:
    def __init__(self, conn: LostConnection) -> None:
        self._conn = conn

    async def acquire(self, timeout: float) -> LostConnection:
        return self._conn

    async def release(self, conn: LostConnection, timeout: float) -> None:
        """Does nothing: asyncpg has released the connection."""


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InterfaceError(RELEASED),
        asyncpg.InterfaceError("the underlying connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
    ],
)
async def test_a_lost_connection_is_postgres_unavailable(error: Exception) -> None:
    pool: Any = Pool(LostConnection(error))
    with pytest.raises(Unavailable) as caught:
        async with connection(pool) as conn:
            await conn.fetchval("SELECT 1")
    assert caught.value.reason == "POSTGRES_UNAVAILABLE"


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
        asyncpg.PostgresError("an error that no list names"),
        OSError("no route to host"),
    ],
)
async def test_any_error_of_the_driver_with_a_closed_connection_is_its_loss(error: Exception) -> None:
    pool: Any = Pool(LostConnection(error, closed=True))
    with pytest.raises(Unavailable):
        async with connection(pool) as conn:
            await conn.fetchval("SELECT 1")


async def test_a_wrong_use_of_asyncpg_is_not_a_lost_connection() -> None:
    pool: Any = Pool(LostConnection(asyncpg.InterfaceError("another operation is in progress")))
    with pytest.raises(asyncpg.InterfaceError, match="another operation"):
        async with connection(pool) as conn:
            await conn.fetchval("SELECT 1")
