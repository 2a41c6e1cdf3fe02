"""Leases in the database: at most one holder at a time, with a fencing token.

The token lets the database refuse a holder that lost its lease without noticing. Only the database clock
counts, so the clocks of machines need not agree.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from flywheel_common.errors import FlywheelError
from flywheel_common.ids import new_id
from flywheel_common.postgres.errors import LeaseLost
from flywheel_common.postgres.pool import Connection, Pool, connection
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)

_TAKE = """
INSERT INTO lease AS l (name, holder, token, expires_at)
VALUES ($1, $2, 1, clock_timestamp() + $3 * interval '1 second')
ON CONFLICT (name) DO UPDATE SET holder = $2, expires_at = clock_timestamp() + $3 * interval '1 second',
    token = CASE WHEN l.holder = $2 AND l.expires_at > clock_timestamp() THEN l.token ELSE l.token + 1 END
WHERE l.holder = $2 OR l.expires_at <= clock_timestamp() OR $4
RETURNING token
"""
_RENEW = """
UPDATE lease SET expires_at = clock_timestamp() + $4 * interval '1 second'
WHERE name = $1 AND holder = $2 AND token = $3 AND expires_at > clock_timestamp() RETURNING true
"""
_RELEASE = "UPDATE lease SET expires_at = clock_timestamp() WHERE name = $1 AND holder = $2 AND token = $3"
_FENCE = "SELECT true FROM lease WHERE name = $1 AND token = $2 AND expires_at > clock_timestamp() FOR SHARE"


_LIVE = "SELECT name FROM lease WHERE starts_with(name, $1) AND expires_at > clock_timestamp()"
_TRIM = "DELETE FROM lease WHERE starts_with(name, $1) AND expires_at < clock_timestamp() - interval '1 hour'"


class Lease:
    """A lease on `name` for `ttl_seconds`, renewed every quarter of that time while `run` works.

    With `replace`, the first acquisition also takes a lease that has not expired: for a name that belongs to
    one process at a time, whose former run may have died without a release.
    """

    def __init__(
        self,
        pool: Pool,
        name: str,
        *,
        holder: str | None = None,
        ttl_seconds: float = 10.0,
        replace: bool = False,
    ) -> None:
        self.name = name
        self.holder = holder or new_id()
        self.ttl_seconds = ttl_seconds
        self._pool = pool
        self._replace = replace

    async def try_acquire(self) -> int | None:
        """The fencing token, which rises with every change of holder, or None while another process holds
        it."""
        async with connection(self._pool) as conn:
            token: int | None = await conn.fetchval(
                _TAKE, self.name, self.holder, self.ttl_seconds, self._replace
            )
        self._replace = False
        return token

    async def renew(self, token: int) -> bool:
        """Extends the lease; False when it is lost."""
        async with connection(self._pool) as conn:
            return bool(await conn.fetchval(_RENEW, self.name, self.holder, token, self.ttl_seconds))

    async def release(self, token: int) -> None:
        """Ends the lease, so that another process can take it at once."""
        async with connection(self._pool) as conn:
            await conn.execute(_RELEASE, self.name, self.holder, token)

    async def run(self, work: Callable[[int], Awaitable[None]]) -> None:
        """Repeats for ever: takes the lease, runs `work(token)` and renews the lease meanwhile.

        When the lease is lost, `work` is cancelled before the TTL ends. When `work` returns, the lease is
        released and taken again later. Retryable errors are retried; any other exception of `work` is raised.
        """
        while True:
            try:
                token = await self.try_acquire()
                if token is not None:
                    await self._hold(token, work)
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("lease interrupted", lease=self.name, reason=error.reason)
            await asyncio.sleep(self.ttl_seconds / 3 * random.uniform(0.5, 1.0))

    async def _hold(self, token: int, work: Callable[[int], Awaitable[None]]) -> None:
        log.info("lease taken", lease=self.name, fencing_token=token)
        loop = asyncio.get_running_loop()
        renewed = [loop.time()]
        task = asyncio.ensure_future(work(token))
        renewer = asyncio.ensure_future(self._keep(token, renewed))
        try:
            while not task.done() and not renewer.done():
                # Without a renewal, stop at two thirds of the TTL: the work has then ended before another can
                # start.
                left = renewed[0] + self.ttl_seconds * 2 / 3 - loop.time()
                if left <= 0:
                    break
                await asyncio.wait({task, renewer}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            else:
                if renewer.done():
                    await renewer  # raises its exception, if it had one
                log.warning("lease lost", lease=self.name)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            renewer.cancel()
            await asyncio.gather(renewer, return_exceptions=True)
            try:
                async with asyncio.timeout(self.ttl_seconds / 3):
                    await self.release(token)
            except (FlywheelError, TimeoutError):
                log.warning("lease not released; it will expire", lease=self.name)

    async def _keep(self, token: int, renewed: list[float]) -> None:
        """Renews until the lease is lost; writes the start of each successful renewal to `renewed`."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.ttl_seconds / 4)
            begun = loop.time()
            try:
                if not await self.renew(token):
                    return
                renewed[0] = begun
            except FlywheelError as error:
                log.warning("lease not renewed yet", lease=self.name, reason=error.reason)


async def fence(conn: Connection, name: str, token: int) -> None:
    """Locks the lease in a transaction that acts under it, so that it cannot change hands until the
    transaction ends. Raises LeaseLost unless `token` still holds it."""
    if not await conn.fetchval(_FENCE, name, token):
        raise LeaseLost(f"The lease {name} is held by another process.", lease=name)


async def live_leases(conn: Connection, prefix: str) -> list[str]:
    """The names with this prefix whose lease is held now."""
    return [row["name"] for row in await conn.fetch(_LIVE, prefix)]


async def trim_leases(conn: Connection, prefix: str) -> None:
    """Deletes the leases with this prefix that ended an hour ago, for names that are not used again."""
    await conn.execute(_TRIM, prefix)
