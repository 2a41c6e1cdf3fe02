"""The identity of this installation, and which of its replicas are alive."""

from __future__ import annotations

from dataclasses import dataclass, field

from flywheel_common.postgres.lease import Lease, live_leases, trim_leases
from flywheel_common.postgres.pool import Pool, connection

_PREFIX = "trainer-replica:"


@dataclass(frozen=True)
class Installation:
    """What all replicas on one database share."""

    id: str
    token_key: bytes = field(repr=False)


async def read_installation(pool: Pool) -> Installation:
    async with connection(pool) as conn:
        row = await conn.fetchrow("SELECT id, token_key FROM installation")
    return Installation(row["id"], row["token_key"])


def executor_lease(pool: Pool, executor_id: str) -> Lease:
    """The lease that a replica holds as long as it is alive."""
    return Lease(pool, _PREFIX + executor_id, holder=executor_id)


async def live_executors(pool: Pool) -> set[str]:
    """The replicas that are alive."""
    async with connection(pool) as conn:
        await trim_leases(conn, _PREFIX)
        return {name.removeprefix(_PREFIX) for name in await live_leases(conn, _PREFIX)}
