"""PostgreSQL through asyncpg: a pool that explains itself, transactions whose errors are domain errors.

async with transaction(pool, translate={"uq_model_name": ModelExists("…")}) as conn:
    await conn.execute(INSERT_MODEL, …)
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Literal, TypeAlias

import asyncpg

from flywheel_common.config import redact_dsn
from flywheel_common.deadline import in_time, seconds_to_answer
from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.errors import (
    PostgresRefused,
    PostgresUnavailable,
    SerializationFailure,
    StatementTimeout,
)
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)

Connection: TypeAlias = Any
"""asyncpg.Connection or the pool's proxy of one."""
Pool: TypeAlias = "asyncpg.Pool[Any]"
Translation = Mapping[str, FlywheelError | Callable[[], FlywheelError]]
"""Constraint name → the domain error its violation means."""

ACQUIRE_SECONDS = 5.0
GRACE_SECONDS = 5.0
"""How much longer than the server a client waits for a statement that the server should have cancelled."""


@asynccontextmanager
async def create_pool(
    dsn: str,
    *,
    application_name: str = "flywheel",
    min_size: int = 1,
    max_size: int = 10,
    statement_timeout_seconds: float = 10.0,
    wait_seconds: float = 30.0,
    init: Callable[[Connection], Any] | None = None,
) -> AsyncIterator[Pool]:
    """A pool, closed at the end. Tries for `wait_seconds` at start; then raises Unavailable POSTGRES_UNAVAILABLE that
    names the (redacted) address. A wrong password or database is not retried: FailedPrecondition POSTGRES_REFUSED."""
    pool = await _connect(
        dsn, application_name, min_size, max_size, statement_timeout_seconds, wait_seconds, init
    )
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(5):
                await pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError):
            pool.terminate()


def alive(conn: Connection | None) -> bool:
    """Whether a connection that is held for long, as listeners are, can still be used. A pool takes back those whose server went
    away, and to ask one of these whether it is closed raises."""
    try:
        return conn is not None and not conn.is_closed()
    except asyncpg.InterfaceError:
        return False


async def _connect(
    dsn: str,
    name: str,
    min_size: int,
    max_size: int,
    statement_timeout: float,
    wait: float,
    init: Callable[[Connection], Any] | None,
) -> Pool:
    loop = asyncio.get_running_loop()
    give_up, delay = loop.time() + wait, 0.1
    while True:
        try:
            return await asyncpg.create_pool(
                dsn,
                min_size=min_size,
                max_size=max_size,
                timeout=5.0,
                command_timeout=statement_timeout + GRACE_SECONDS,
                init=init,
                reset=_as_it_is,
                server_settings={
                    "application_name": name,
                    "statement_timeout": str(int(statement_timeout * 1000)),
                    "idle_in_transaction_session_timeout": str(int(max(60.0, 2 * statement_timeout) * 1000)),
                    "timezone": "UTC",
                },
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            raise PostgresRefused(
                f"PostgreSQL at {redact_dsn(dsn)} refuses: {error}. Check the DSN and that the database exists.",
            ) from None
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            if loop.time() + delay > give_up:
                raise PostgresUnavailable(
                    f"PostgreSQL at {redact_dsn(dsn)} did not answer within {wait:g} s: start it or correct the DSN.",
                ) from error
            log.warning("waiting for postgres", dsn=redact_dsn(dsn), error=type(error).__name__)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)


async def _as_it_is(_: Connection) -> None:
    """Whoever changes a session (a listener, a migration) changes it back: asyncpg would ask the server to, after every use."""


async def _acquire(pool: Pool) -> Connection:
    left = seconds_to_answer()
    patience = ACQUIRE_SECONDS if left is None else max(0.001, min(ACQUIRE_SECONDS, left))
    try:
        return await pool.acquire(timeout=patience)
    except TimeoutError as error:  # before OSError, of which it is one
        raise PostgresUnavailable("No PostgreSQL connection was free in time: try again.") from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise _unavailable() from error


@asynccontextmanager
async def connection(pool: Pool, *, translate: Translation | None = None) -> AsyncIterator[Connection]:
    """A connection for reads, each statement its own transaction; errors become domain errors. A call that has a deadline hears
    Unavailable POSTGRES_UNAVAILABLE before it."""
    conn = await _acquire(pool)
    async with in_time(_unavailable):
        try:
            with domain_errors(translate):
                yield conn
        except (asyncio.CancelledError, GeneratorExit):
            _clean_up_later(pool, conn, None)
            raise
        except BaseException:
            await _release(pool, conn)
            raise
    await _release(pool, conn)


@asynccontextmanager
async def transaction(
    pool: Pool,
    *,
    translate: Translation | None = None,
    isolation: Literal["read_committed", "repeatable_read", "serializable"] = "read_committed",
    readonly: bool = False,
) -> AsyncIterator[Connection]:
    """One transaction: committed at the end, rolled back by any exception. Raises, besides the translations:
    Unavailable POSTGRES_UNAVAILABLE (if the connection broke during commit, or a call's deadline came, the effect may have
    happened), Aborted SERIALIZATION_FAILURE, DeadlineExceeded STATEMENT_TIMEOUT."""
    conn = await _acquire(pool)
    async with in_time(_unavailable):
        try:
            with domain_errors(translate):
                begun = conn.transaction(isolation=isolation, readonly=readonly)
                await begun.start()
                try:
                    yield conn
                except (asyncio.CancelledError, GeneratorExit):
                    raise
                except BaseException:
                    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                        await begun.rollback()
                    raise
                await begun.commit()
        except (asyncio.CancelledError, GeneratorExit):
            _clean_up_later(pool, conn, begun)
            raise
        except BaseException:
            await _release(pool, conn)
            raise
    await _release(pool, conn)


@contextmanager
def domain_errors(translate: Translation | None = None) -> Iterator[None]:
    """Turns asyncpg's errors into domain errors; a constraint without a translation passes unchanged."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError, TimeoutError) as error:
        mapped = _mapped(error, translate or {})
        if mapped is None:
            raise
        raise mapped from error


def _mapped(error: Exception, translate: Translation) -> FlywheelError | None:
    if isinstance(error, asyncpg.IntegrityConstraintViolationError):
        found = translate.get(error.constraint_name or "")
        if found is None:
            return None
        return copy.copy(found) if isinstance(found, FlywheelError) else found()
    if isinstance(
        error, (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)
    ):
        return SerializationFailure("Another change came first: read again and retry.")
    if isinstance(error, asyncpg.QueryCanceledError):
        return StatementTimeout("A database statement took too long and was cancelled.")
    if is_connection_loss(error):
        return _unavailable()
    return None


def is_connection_loss(error: BaseException) -> bool:
    """Whether the database went away (rather than disagreed)."""
    return isinstance(
        error,
        (
            asyncpg.PostgresConnectionError,
            asyncpg.AdminShutdownError,
            asyncpg.CrashShutdownError,
            asyncpg.CannotConnectNowError,
            asyncpg.TooManyConnectionsError,
            asyncpg.IdleInTransactionSessionTimeoutError,
            ConnectionError,
            TimeoutError,  # of a statement: the server would have cancelled it earlier
        ),
    ) or (isinstance(error, asyncpg.InterfaceError) and "closed" in str(error))


def _unavailable() -> PostgresUnavailable:
    return PostgresUnavailable("The database does not answer now: try again.")


_cleaning: set[asyncio.Task[None]] = set()
CLEAN_UP_SECONDS = 2.0


def _clean_up_later(pool: Pool, conn: Connection, begun: Any) -> None:
    """Whoever was cancelled must not wait for a database that may have stalled: the roll-back is done aside, and
    the connection is dropped when it takes too long."""
    task = asyncio.create_task(_clean_up(pool, conn, begun), name="postgres clean-up")
    _cleaning.add(task)
    task.add_done_callback(_cleaning.discard)


async def _clean_up(pool: Pool, conn: Connection, begun: Any) -> None:
    try:
        async with asyncio.timeout(CLEAN_UP_SECONDS):
            if begun is not None:
                await begun.rollback()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        conn.terminate()
    await _release(pool, conn)


async def _release(pool: Pool, conn: Connection) -> None:
    try:
        await pool.release(conn, timeout=CLEAN_UP_SECONDS)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        log.warning("a broken database connection was dropped")
