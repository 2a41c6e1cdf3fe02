"""Contract tests of the consumer lag, by which windows are closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from flywheel_common.deadline import budget, left_seconds
from flywheel_common.errors import Unavailable
from tests.support.eventually import eventually
from tests.support.servers.monitor_streams import Stream


async def lag_of(stream: Stream) -> tuple[int, int]:
    """(unread records, dead letters)"""
    found = await stream.lag.read()
    return found.total, found.dead_letters


async def lag_while_down(stream: Stream) -> tuple[int, int]:
    """The last lag, while reading it fails."""
    with pytest.raises(Unavailable) as caught:
        await stream.lag.read()
    assert "KAFKA_UNAVAILABLE" == caught.value.reason
    return stream.lag.last.total, stream.lag.last.dead_letters


async def test_unclaimed_partitions_count_from_the_first_read(stream: Stream) -> None:
    await stream.write(stream.predictions, 1, 3)
    await stream.write(stream.outcomes, 0)
    assert (4, 0) == await lag_of(stream)


async def test_a_partition_without_a_position_counts_from_its_begin(stream: Stream) -> None:
    await stream.write(stream.predictions, 0, 5)
    await stream.drop(stream.predictions, 0, before=3)
    assert (2, 0) == await lag_of(stream)
    await stream.read(stream.predictions, 0, 0)
    assert (2, 0) == await lag_of(stream), "claimed, and nothing committed"


async def test_committed_records_do_not_count(stream: Stream) -> None:
    assert (0, 0) == await lag_of(stream)
    await stream.write(stream.predictions, 0, 2)
    await stream.write(stream.outcomes, 1, 3)
    await stream.read(stream.outcomes, 1, 2)
    assert (3, 0) == await lag_of(stream)
    await stream.read(stream.predictions, 0, 2)
    await stream.read(stream.outcomes, 1, 1)
    assert (0, 0) == await lag_of(stream)


async def test_records_that_the_broker_dropped_do_not_count(stream: Stream) -> None:
    await stream.write(stream.predictions, 0, 5)
    await stream.read(stream.predictions, 0, 1)
    await stream.drop(stream.predictions, 0, before=4)
    assert (1, 0) == await lag_of(stream)
    await stream.drop(stream.predictions, 0, before=5)
    assert (0, 0) == await lag_of(stream)


async def test_dead_letters_are_counted_apart(stream: Stream) -> None:
    await stream.write(stream.predictions, 0, 3)
    await stream.park(2)
    await stream.read(stream.predictions, 0, 2)
    assert (1, 2) == await lag_of(stream)


async def test_the_lag_is_read_per_topic_and_partition(stream: Stream) -> None:
    await stream.write(stream.outcomes, 0)
    for partition in (0, 1):
        await stream.write(stream.predictions, partition, 2)
        await stream.read(stream.predictions, partition, 2 - partition)
    found = await stream.lag.read()
    assert ({1}, {0}) == (
        found.unread_partitions(stream.predictions),
        found.unread_partitions(stream.outcomes),
    )
    predictions, outcomes = stream.predictions, stream.outcomes
    expected = {(predictions, 0): 0, (predictions, 1): 1, (outcomes, 0): 1, (outcomes, 1): 0}
    assert expected == found.records
    assert stream.lag.last is found


async def test_a_record_written_during_a_read_never_counts_as_read(stream: Stream) -> None:
    await stream.write(stream.predictions, 0)

    async def always_one_unread() -> None:
        while True:
            await stream.write(stream.predictions, 0)
            await stream.read(stream.predictions, 0, 1)
            await asyncio.sleep(0)

    writing = asyncio.create_task(always_one_unread())
    try:
        found = []
        for _ in range(60):
            await asyncio.sleep(0)
            found.append((await lag_of(stream))[0])
    finally:
        writing.cancel()
        await asyncio.wait({writing})
    assert writing.cancelled(), "it ran until the end"
    assert not [n for n in found if n < 1], found


async def test_concurrent_reads_are_allowed(stream: Stream) -> None:
    await stream.write(stream.predictions, 0, 2)
    assert {(2, 0)} == set(await asyncio.gather(*(lag_of(stream) for _ in range(8))))


async def test_an_unlisted_partition_does_not_count_as_read(stream: Stream) -> None:
    await stream.write(stream.predictions, 0)
    assert (1, 0) == await lag_of(stream)
    await stream.read(stream.predictions, 2, 1)
    await stream.read(stream.predictions, 0, 1)
    assert (1, 0) == await lag_while_down(stream)


async def test_before_the_first_read_the_last_lag_is_empty(stream: Stream) -> None:
    await stream.read(stream.predictions, 2, 1)
    assert (0, 0) == await lag_while_down(stream)


@pytest.mark.timeout(120)
async def test_while_the_broker_is_down_the_last_lag_stays(stream: Stream) -> None:
    await stream.write(stream.predictions, 0, 3)
    await stream.park(1)
    assert (3, 1) == await lag_of(stream)
    async with stopped(stream):
        await stream.read(stream.predictions, 0, 1)
        assert (3, 1) == await lag_while_down(stream)
    await eventually(lambda: has_lag(stream, (2, 1)), within=30)


@pytest.mark.timeout(120)
async def test_a_broker_that_was_down_at_first_is_read_later(stream: Stream) -> None:
    await stream.write(stream.predictions, 0, 3)
    async with stopped(stream):
        assert (0, 0) == await lag_while_down(stream)
    await eventually(lambda: has_lag(stream, (3, 0)), within=30)


@pytest.mark.timeout(120)
async def test_a_hung_broker_fails_before_the_deadline(stream: Stream) -> None:
    await stream.write(stream.predictions, 0, 3)
    assert (3, 0) == await lag_of(stream)
    stream.hang()
    try:
        with budget(2.0):
            for known in await asyncio.gather(*(lag_while_down(stream) for _ in range(4))):
                assert (3, 0) == known
            left = left_seconds()
        assert left is not None
        assert left > 0
    finally:
        stream.resume()
    await eventually(lambda: has_lag(stream, (3, 0)), within=30)


@asynccontextmanager
async def stopped(stream: Stream) -> AsyncIterator[None]:
    await stream.stop()
    try:
        yield
    finally:
        await stream.restart()


async def has_lag(stream: Stream, expected: tuple[int, int]) -> bool:
    with suppress(Unavailable):
        return expected == await lag_of(stream)
    return False
