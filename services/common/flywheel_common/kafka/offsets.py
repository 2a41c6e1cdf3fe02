"""Consumer positions in PostgreSQL, fenced by an epoch per partition, and the ids of processed events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka import TopicPartition

from flywheel_common.kafka.record import Record
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction

_CLAIM = """
INSERT INTO consumer_offset AS c (consumer_group, topic, partition, epoch, owner) VALUES ($1, $2, $3, 1, $4)
ON CONFLICT (consumer_group, topic, partition)
DO UPDATE SET epoch = c.epoch + 1, owner = $4, updated_at = now()
RETURNING next_offset, epoch
"""
_MOVE = """
UPDATE consumer_offset SET next_offset = $5, updated_at = now()
WHERE consumer_group = $1 AND topic = $2 AND partition = $3 AND epoch = $4 AND coalesce(next_offset, -1) < $5
RETURNING true
"""
_POSITIONS = """
SELECT topic, partition, next_offset FROM consumer_offset
WHERE consumer_group = $1 AND next_offset IS NOT NULL
"""
_FRESH = """
INSERT INTO consumer_event (consumer_group, event_id)
SELECT $1, id FROM unnest($2::text[]) AS t(id) ORDER BY id
ON CONFLICT DO NOTHING RETURNING event_id
"""
_TRIM = "DELETE FROM consumer_event WHERE consumer_group = $1 AND seen_at < now() - $2 * interval '1 day'"


class Fenced(Exception):
    """The position cannot move: another member has claimed the partition, or the position is already there.

    A position is already there when a commit succeeded but its acknowledgement was lost. Repeating the batch
    would repeat its effect; the partition must be claimed again to read the stored position."""


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """The right to move the position of a partition while `epoch` is the latest; `next_offset` None = the
    beginning."""

    partition: TopicPartition
    next_offset: int | None
    epoch: int


async def claim_partitions(
    pool: Pool, group: str, owner: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, Claim]:
    """Claims partitions and reads their positions. Waits for a running commit of the previous owner."""
    claims = {}
    async with transaction(pool) as conn:
        for tp in sorted(partitions):
            row = await conn.fetchrow(_CLAIM, group, tp.topic, tp.partition, owner)
            claims[tp] = Claim(tp, row["next_offset"], row["epoch"])
    return claims


async def move_position(conn: Connection, group: str, claim: Claim, next_offset: int) -> None:
    """Moves the position; the last statement in the transaction of the effect. Raises Fenced, which rolls
    back."""
    tp = claim.partition
    if not await conn.fetchval(_MOVE, group, tp.topic, tp.partition, claim.epoch, next_offset):
        raise Fenced(f"{tp.topic}/{tp.partition}")


async def fresh_events(conn: Connection, group: str, records: Sequence[Record]) -> list[Record]:
    """The records whose event id is new to this group, the first of each id, in order; stores the ids."""
    first: dict[str, Record] = {}
    for record in records:
        if record.event is not None:
            first.setdefault(record.event.id, record)
    if not first:
        return [record for record in records if record.event is None]
    fresh = {row["event_id"] for row in await conn.fetch(_FRESH, group, list(first))}
    return [r for r in records if r.event is None or (r.event.id in fresh and first[r.event.id] is r)]


async def stored_positions(pool: Pool, group: str) -> dict[TopicPartition, int]:
    """The positions of a group, for status pages and tests."""
    async with connection(pool) as conn:
        rows = await conn.fetch(_POSITIONS, group)
    return {TopicPartition(row["topic"], row["partition"]): row["next_offset"] for row in rows}


async def trim_events(pool: Pool, group: str, keep_days: float) -> None:
    """Deletes event ids that are older than any redelivery can be."""
    async with connection(pool) as conn:
        await conn.execute(_TRIM, group, keep_days)
