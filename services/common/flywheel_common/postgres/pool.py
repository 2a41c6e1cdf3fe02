"""A PostgreSQL pool (asyncpg), and connections and transactions whose errors are domain errors.

async with transaction(pool, translate={"uq_model_name": ModelExists("…")}) as conn:
    await conn.execute(INSERT_MODEL, …)
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
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
"""Constraint name → the domain error to raise when it is violated."""

ACQUIRE_SECONDS = 5.0
"""How long a caller waits for a free connection."""
GRACE_SECONDS = 5.0
"""How much longer than the statement timeout of the server the client waits for an answer."""

DRIVER_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises. TimeoutError and ConnectionError are OSErrors."""
_INTERRUPTED = (asyncio.CancelledError, GeneratorExit)


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
    plan_once: bool = False,
) -> AsyncIterator[Pool]:
    """A pool, closed at the end. Tries to connect for `wait_seconds`, then raises PostgresUnavailable with
    the redacted address. A wrong user, password or database is not retried: PostgresRefused.

    `plan_once`: PostgreSQL plans each statement once per connection, not for each set of arguments. For
    statements whose best plan does not depend on these, and whose planning takes longer than they do.
    """
    settings = {
        "application_name": application_name,
        "statement_timeout": str(int(statement_timeout_seconds * 1000)),
        "idle_in_transaction_session_timeout": str(int(max(60.0, 2 * statement_timeout_seconds) * 1000)),
        "timezone": "UTC",
    }
    if plan_once:
        settings["plan_cache_mode"] = "force_generic_plan"
    command_timeout = statement_timeout_seconds + GRACE_SECONDS
    pool = await _connect(dsn, settings, min_size, max_size, command_timeout, wait_seconds, init)
    try:
        yield pool
    finally:
        try:
            async with asyncio.timeout(5):
                await pool.close()
        except DRIVER_ERRORS:
            pool.terminate()


def alive(conn: Connection | None) -> bool:
    """Whether a long-held connection, such as a listener, is still usable. The pool takes back a connection
    whose server went away; after that, `is_closed()` raises."""
    try:
        return conn is not None and not conn.is_closed()
    except asyncpg.InterfaceError:
        return False


async def _connect(
    dsn: str,
    settings: Mapping[str, str],
    min_size: int,
    max_size: int,
    command_timeout: float,
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
                command_timeout=command_timeout,
                init=init,
                reset=_no_reset,
                server_settings=dict(settings),
            )
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            raise PostgresRefused(
                f"PostgreSQL at {redact_dsn(dsn)} refuses: {error}. "
                "Check the DSN and that the database exists.",
            ) from None
        except DRIVER_ERRORS as error:
            if loop.time() + delay > give_up:
                raise PostgresUnavailable(
                    f"PostgreSQL at {redact_dsn(dsn)} did not answer within {wait:g} s: "
                    "start it or correct the DSN."
                ) from error
            log.warning("waiting for postgres", dsn=redact_dsn(dsn), error=type(error).__name__)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)


async def _no_reset(_: Connection) -> None:
    """Replaces asyncpg's reset, which is a query after every use. Code that changes a session (listeners,
    migrations) must change it back."""


async def acquire(pool: Pool) -> Connection:
    """A free connection, for a user that keeps it, such as a listener. Raises PostgresUnavailable."""
    left = seconds_to_answer()
    timeout = ACQUIRE_SECONDS if left is None else max(0.001, min(ACQUIRE_SECONDS, left))
    try:
        return await pool.acquire(timeout=timeout)
    except TimeoutError as error:
        raise PostgresUnavailable("No PostgreSQL connection was free in time: try again.") from error
    except DRIVER_ERRORS as error:
        raise _unavailable() from error


@asynccontextmanager
async def connection(pool: Pool, *, translate: Translation | None = None) -> AsyncIterator[Connection]:
    """A connection for reads: each statement is a transaction of its own. Raises domain errors. If the
    database hangs, PostgresUnavailable is raised before the deadline of the running call."""
    async with _checkout(pool, translate) as checkout:
        yield checkout.conn


@asynccontextmanager
async def transaction(
    pool: Pool,
    *,
    translate: Translation | None = None,
    isolation: Literal["read_committed", "repeatable_read", "serializable"] = "read_committed",
    readonly: bool = False,
) -> AsyncIterator[Connection]:
    """One transaction: committed at the end, rolled back by any exception.

    Raises, besides the translations, SerializationFailure, StatementTimeout and PostgresUnavailable. If the
    connection broke during the commit, or the call's deadline came, the effect may have happened.
    """
    async with _checkout(pool, translate) as checkout:
        begun = checkout.begun = checkout.conn.transaction(isolation=isolation, readonly=readonly)
        await begun.start()
        try:
            yield checkout.conn
        except _INTERRUPTED:
            raise
        except BaseException:
            with suppress(*DRIVER_ERRORS):
                await begun.rollback()
            raise
        await begun.commit()


@dataclass(slots=True)
class _Checkout:
    """A connection taken from the pool, and the transaction begun on it, if any."""

    conn: Connection
    begun: Any = None


@asynccontextmanager
async def _checkout(pool: Pool, translate: Translation | None) -> AsyncIterator[_Checkout]:
    """Takes a connection and returns it to the pool whatever happens. A cancelled caller does not wait for a
    database that may hang: its rollback and release run in a background task."""
    checkout = _Checkout(await acquire(pool))
    async with in_time(_unavailable):
        try:
            with domain_errors(checkout.conn, translate):
                yield checkout
        except _INTERRUPTED:
            _release_later(pool, checkout)
            raise
        except BaseException as error:
            if isinstance(error.__cause__, asyncpg.InternalClientError):
                # asyncpg takes it for an open connection, unless the socket has closed meanwhile.
                with suppress(asyncpg.InterfaceError):
                    checkout.conn.terminate()
            await release(pool, checkout.conn)
            raise
    await release(pool, checkout.conn)


@contextmanager
def domain_errors(conn: Connection, translate: Translation | None = None) -> Iterator[None]:
    """Turns asyncpg's errors into domain errors. Any error of the driver after which the connection is closed
    is the loss of the connection. A violated constraint without a translation is raised unchanged."""
    try:
        yield
    except DRIVER_ERRORS as error:
        mapped = _mapped(error, translate or {})
        if mapped is None and not alive(conn):
            mapped = _unavailable()
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


_LOST = ("closed", "released back to the pool")
"""What asyncpg says of a lost connection: the pool takes it back while a block still uses it."""


def is_connection_loss(error: BaseException) -> bool:
    """Whether the connection to the database was lost, as opposed to a refused statement."""
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
            TimeoutError,  # of a statement; a server that answers cancels it earlier
            # of a statement after the server announced the end of the connection, before the socket closed
            asyncpg.InternalClientError,
        ),
    ) or (isinstance(error, asyncpg.InterfaceError) and any(text in str(error) for text in _LOST))


def _unavailable() -> PostgresUnavailable:
    return PostgresUnavailable("The database does not answer now: try again.")


_releasing: set[asyncio.Task[None]] = set()
RELEASE_SECONDS = 2.0
"""How long a rollback, and the return to the pool, may take before the connection is dropped."""


def _release_later(pool: Pool, checkout: _Checkout) -> None:
    task = asyncio.create_task(_roll_back_and_release(pool, checkout), name="postgres clean-up")
    _releasing.add(task)
    task.add_done_callback(_releasing.discard)


async def _roll_back_and_release(pool: Pool, checkout: _Checkout) -> None:
    try:
        async with asyncio.timeout(RELEASE_SECONDS):
            if checkout.begun is not None:
                await checkout.begun.rollback()
    except DRIVER_ERRORS:
        checkout.conn.terminate()
    await release(pool, checkout.conn)


async def release(pool: Pool, conn: Connection) -> None:
    """Returns a connection to the pool, whatever became of it."""
    try:
        await pool.release(conn, timeout=RELEASE_SECONDS)
    except DRIVER_ERRORS:
        log.warning("a broken database connection was dropped")
