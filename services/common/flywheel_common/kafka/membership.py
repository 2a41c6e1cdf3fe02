"""Members of a group and their claims on partitions, in PostgreSQL: who reads what, without Kafka's groups.

A member is alive while it holds its lease. A claim names its member in `consumer_offset.owner` and is worth
as much as the member's lease, so that one renewal keeps all claims of a member, and all of them are free when
it has died. `consumer_offset.epoch` rises with every claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka import TopicPartition

from flywheel_common.postgres.lease import Lease, fence, live_leases, trim_leases
from flywheel_common.postgres.pool import Pool, connection, transaction

_OWNERS = """
SELECT topic, partition, owner, epoch FROM consumer_offset WHERE consumer_group = $1 AND owner <> ''
"""
_CLAIM = """
INSERT INTO consumer_offset AS c (consumer_group, topic, partition, epoch, owner)
SELECT $1, t.topic, t.partition, 1, $2
FROM unnest($3::text[], $4::int[]) AS t (topic, partition) ORDER BY t.topic, t.partition
ON CONFLICT (consumer_group, topic, partition)
DO UPDATE SET epoch = c.epoch + 1, owner = $2, updated_at = now()
WHERE c.owner IN ('', $2)
    OR NOT EXISTS (SELECT FROM lease WHERE name = $5 || c.owner AND expires_at > clock_timestamp())
RETURNING topic, partition, epoch
"""
_RELEASE = """
UPDATE consumer_offset AS c SET owner = '', updated_at = now()
FROM unnest($3::text[], $4::int[], $5::bigint[]) AS t (topic, partition, epoch)
WHERE c.consumer_group = $1 AND c.topic = t.topic AND c.partition = t.partition
    AND c.owner = $2 AND c.epoch = t.epoch
"""


@dataclass(frozen=True, slots=True)
class Members:
    """A group as one query saw it."""

    alive: frozenset[str]
    owners: dict[TopicPartition, str]
    """Also of partitions whose owner is dead."""
    epochs: dict[TopicPartition, int]


class Membership:
    """One member's view of its group. Methods raise Unavailable while PostgreSQL is down.

    `name` is unique among the members; a process that starts again under its former name takes the place and
    the claims of its former run at once.
    """

    def __init__(self, pool: Pool, group: str, name: str, ttl_seconds: float) -> None:
        self.name = name
        self._pool = pool
        self._group = group
        self._prefix = f"consumer/{group}/"
        self.lease = Lease(pool, self._prefix + name, ttl_seconds=ttl_seconds, replace=True)

    async def read(self) -> Members:
        """The live members and the claims of all members."""
        async with transaction(self._pool, readonly=True, isolation="repeatable_read") as conn:
            alive = await live_leases(conn, self._prefix)
            rows = await conn.fetch(_OWNERS, self._group)
        places = {TopicPartition(r["topic"], r["partition"]): r for r in rows}
        return Members(
            frozenset(name.removeprefix(self._prefix) for name in alive),
            {tp: r["owner"] for tp, r in places.items()},
            {tp: r["epoch"] for tp, r in places.items()},
        )

    async def claim(self, token: int, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Claim partitions that no live member has claimed; returns those won, with their epochs.

        Raises LeaseLost unless `token` holds the member's lease.
        """
        topics, numbers = [tp.topic for tp in partitions], [tp.partition for tp in partitions]
        async with transaction(self._pool) as conn:
            await fence(conn, self.lease.name, token)
            rows = await conn.fetch(_CLAIM, self._group, self.name, topics, numbers, self._prefix)
        return {TopicPartition(r["topic"], r["partition"]): r["epoch"] for r in rows}

    async def release(self, epochs: dict[TopicPartition, int]) -> None:
        """End claims (partition → epoch); a claim that another member has taken since is left alone."""
        topics, numbers = [tp.topic for tp in epochs], [tp.partition for tp in epochs]
        async with connection(self._pool) as conn:
            await conn.execute(_RELEASE, self._group, self.name, topics, numbers, list(epochs.values()))

    async def trim(self) -> None:
        """Delete the leases of members that died long ago."""
        async with connection(self._pool) as conn:
            await trim_leases(conn, self._prefix)
