"""A topic that gets more partitions: ids of before and after belong together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pytest

from flywheel_common.ids import uuid7
from flywheel_common.kafka.topics import partition_for
from flywheel_common.postgres.pool import create_pool
from tests.support.builders.monitor import (
    CHAMPION,
    MODEL,
    SHADOW,
    START_US,
    outcomes,
    predictions,
    version_name,
)
from tests.support.servers.monitor import LocalMonitor, postgres_monitor

ROLLOUT = f"{MODEL}/rollouts/1"
BEFORE, AFTER = 2, 4
"""Numbers of partitions of the topic."""
KINDS = {
    "times": [uuid7(START_US // 1000 + i, i * 977) for i in range(40)],
    "texts": [f"p{i}" for i in range(40)],
}


def by_partition(ids: Iterable[str], partitions: int) -> list[tuple[int, list[str]]]:
    """What gateways send that know so many partitions."""
    found: dict[int, list[str]] = {}
    for i in ids:
        found.setdefault(partition_for(i, partitions), []).append(i)
    return list(found.items())


async def predict(
    monitor: LocalMonitor, ids: Sequence[str], partitions: int, role: int = CHAMPION, rollout: str = ""
) -> None:
    number = 1 if role == CHAMPION else 2
    for partition, mine in by_partition(ids, partitions):
        batch = predictions(mine, role=role, version=number, release=number, rollout=rollout)
        await monitor.predicted(batch, partition=partition)


async def label(monitor: LocalMonitor, ids: Sequence[str], partitions: int) -> None:
    for partition, mine in by_partition(ids, partitions):
        await monitor.labelled(outcomes(mine, [1.0] * len(mine)), partition=partition)


@pytest.mark.parametrize("order", [(BEFORE, AFTER), (AFTER, BEFORE)], ids=["new later", "old later"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_repeat_counts_once(monitor: LocalMonitor, kind: str, order: tuple[int, int]) -> None:
    """Also from a gateway that does not know the new partitions yet."""
    ids = KINDS[kind]
    moved = [i for i in ids if partition_for(i, BEFORE) != partition_for(i, AFTER)]
    assert moved
    for partitions in (*order, *order):
        await predict(monitor, ids, partitions)
    counts = await monitor.counts()
    assert (len(ids), 3 * len(ids)) == (counts.predictions, counts.duplicates)


@pytest.mark.parametrize("order", [(BEFORE, AFTER), (AFTER, BEFORE)], ids=["new later", "old later"])
@pytest.mark.parametrize("kind", KINDS)
async def test_pairs_are_found(monitor: LocalMonitor, kind: str, order: tuple[int, int]) -> None:
    ids = KINDS[kind]
    await predict(monitor, ids, order[0], CHAMPION, ROLLOUT)
    await predict(monitor, ids, order[1], SHADOW, ROLLOUT)
    await label(monitor, ids, order[1])
    comparison = (await monitor.compare(shadow=True)).comparison
    assert (len(ids), len(ids)) == (comparison.challenger.predictions, comparison.labelled)
    assert 0.0 == comparison.disagreement_rate


@pytest.mark.parametrize("order", [(BEFORE, AFTER), (AFTER, BEFORE)], ids=["new later", "old later"])
@pytest.mark.parametrize("kind", KINDS)
async def test_labels_before_their_predictions_are_joined(
    monitor: LocalMonitor, kind: str, order: tuple[int, int]
) -> None:
    ids = KINDS[kind]
    await label(monitor, ids, order[0])
    await predict(monitor, ids, order[1])
    found = await monitor.performance(version_name())
    assert (len(ids), 0) == (found.quality.labelled, (await monitor.counts()).orphans)


@pytest.mark.parametrize("kind", KINDS)
async def test_members_that_write_at_once_count_a_repeat_once(database: str, kind: str) -> None:
    """The partitions of before and after are written in transactions that overlap."""
    moved = [i for i in KINDS[kind] if partition_for(i, BEFORE) != partition_for(i, AFTER)]
    async with postgres_monitor(database) as monitor, create_pool(database) as pool:
        await predict(monitor, ["warm"], AFTER)
        old, new = (partition_for(moved[0], n) for n in (BEFORE, AFTER))
        mine = [i for i in moved if partition_for(i, BEFORE) == old and partition_for(i, AFTER) == new]
        async with monitor.store.transaction() as records:
            await records.add_predictions(old, [predictions(mine)])
            other = asyncio.create_task(monitor.predicted(predictions(mine), partition=new))
            while not other.done() and not await pool.fetchval(_WAITS):
                await asyncio.sleep(0.01)
        await other
        assert (1 + len(mine), len(mine)) == (
            (await monitor.counts()).predictions,
            (await monitor.counts()).duplicates,
        )


_WAITS = """
SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""
