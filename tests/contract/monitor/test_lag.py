"""One law for what waits unread, in memory, of Kafka and PostgreSQL, and over gRPC: the watch closes windows by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from flywheel_common.deadline import budget, left_seconds
from flywheel_common.errors import Unavailable
from tests.contract.monitor.streams import Stream
from tests.support.eventually import eventually


async def test_the_first_answer_already_counts_what_nobody_has_claimed(consumed: Any) -> None:
    stream = consumed.stream
    await stream.write(stream.answers, 1, 3)
    await stream.write(stream.outcomes, 0)
    assert (4, 0) == await consumed.asks.waiting()


async def test_a_partition_without_a_position_waits_from_its_first_record_on(consumed: Any) -> None:
    stream = consumed.stream
    await stream.write(stream.answers, 0, 5)
    await stream.drop(stream.answers, 0, before=3)
    assert (2, 0) == await consumed.asks.waiting()
    await stream.read(stream.answers, 0, 0)
    assert (2, 0) == await consumed.asks.waiting(), "it was claimed, and nothing committed"


async def test_what_is_committed_as_read_waits_no_more(consumed: Any) -> None:
    stream = consumed.stream
    assert (0, 0) == await consumed.asks.waiting()
    await stream.write(stream.answers, 0, 2)
    await stream.write(stream.outcomes, 1, 3)
    await stream.read(stream.outcomes, 1, 2)
    assert (3, 0) == await consumed.asks.waiting()
    await stream.read(stream.answers, 0, 2)
    await stream.read(stream.outcomes, 1, 1)
    assert (0, 0) == await consumed.asks.waiting()


async def test_what_the_broker_dropped_unread_waits_no_more(consumed: Any) -> None:
    stream = consumed.stream
    await stream.write(stream.answers, 0, 5)
    await stream.read(stream.answers, 0, 1)
    await stream.drop(stream.answers, 0, before=4)
    assert (1, 0) == await consumed.asks.waiting()
    await stream.drop(stream.answers, 0, before=5)
    assert (0, 0) == await consumed.asks.waiting()


async def test_what_was_parked_is_counted_and_does_not_wait(consumed: Any) -> None:
    stream = consumed.stream
    await stream.write(stream.answers, 0, 3)
    await stream.park(2)
    await stream.read(stream.answers, 0, 2)
    assert (1, 2) == await consumed.asks.waiting()


@pytest.mark.without_grpc("GetIngestStatus tells the sum over topics and partitions")
async def test_each_partition_of_each_topic_is_told_apart(consumed: Any) -> None:
    stream, lag = consumed.stream, consumed.asks.lag
    await stream.write(stream.outcomes, 0)
    for partition in (0, 1):
        await stream.write(stream.answers, partition, 2)
        await stream.read(stream.answers, partition, 2 - partition)
    found = await lag.read()
    assert ({1}, {0}) == (found.behind(stream.answers), found.behind(stream.outcomes))
    assert {
        (stream.answers, 0): 0, (stream.answers, 1): 1, (stream.outcomes, 0): 1, (stream.outcomes, 1): 0,
    } == found.records  # fmt: skip
    assert lag.last is found


async def test_a_record_that_is_written_while_it_is_asked_is_never_taken_for_read(consumed: Any) -> None:
    stream = consumed.stream
    await stream.write(stream.answers, 0)

    async def one_always_waits() -> None:
        while True:
            await stream.write(stream.answers, 0)
            await stream.read(stream.answers, 0, 1)
            await asyncio.sleep(0)

    going_on = asyncio.create_task(one_always_waits())
    try:
        found = []
        for _ in range(60):
            await asyncio.sleep(0)
            found.append((await consumed.asks.waiting())[0])
    finally:
        going_on.cancel()
        await asyncio.wait({going_on})
    assert going_on.cancelled(), "it went on until the end"
    assert not [n for n in found if n < 1], found


async def test_several_may_ask_at_once(consumed: Any) -> None:
    stream = consumed.stream
    await stream.write(stream.answers, 0, 2)
    assert {(2, 0)} == set(await asyncio.gather(*(consumed.asks.waiting() for _ in range(8))))


async def test_a_partition_that_the_broker_does_not_name_is_not_taken_for_read(consumed: Any) -> None:
    stream = consumed.stream
    await stream.write(stream.answers, 0)
    assert (1, 0) == await consumed.asks.waiting()
    await stream.read(stream.answers, 2, 1)
    await stream.read(stream.answers, 0, 1)
    assert (1, 0) == await consumed.asks.known()


async def test_before_the_first_answer_nothing_is_known(consumed: Any) -> None:
    stream = consumed.stream
    await stream.read(stream.answers, 2, 1)
    assert (0, 0) == await consumed.asks.known()


@pytest.mark.timeout(120)
async def test_while_the_broker_is_away_what_was_known_last_stays(consumed: Any) -> None:
    stream = consumed.stream
    await stream.write(stream.answers, 0, 3)
    await stream.park(1)
    assert (3, 1) == await consumed.asks.waiting()
    async with away(stream):
        await stream.read(stream.answers, 0, 1)
        assert (3, 1) == await consumed.asks.known()
    await eventually(lambda: answers(consumed, (2, 1)), within=30)


@pytest.mark.timeout(120)
async def test_a_broker_that_was_away_at_the_first_question_is_asked_again(consumed: Any) -> None:
    stream = consumed.stream
    await stream.write(stream.answers, 0, 3)
    async with away(stream):
        assert (0, 0) == await consumed.asks.known()
    await eventually(lambda: answers(consumed, (3, 0)), within=30)


@pytest.mark.timeout(120)
async def test_a_broker_that_hangs_is_not_waited_for_beyond_the_deadline(consumed: Any) -> None:
    stream = consumed.stream
    await stream.write(stream.answers, 0, 3)
    assert (3, 0) == await consumed.asks.waiting()
    stream.hang()
    try:
        with budget(2.0):
            for known in await asyncio.gather(*(consumed.asks.known() for _ in range(4))):
                assert (3, 0) == known
            left = left_seconds()
        assert left is not None
        assert left > 0
    finally:
        stream.go_on()
    await eventually(lambda: answers(consumed, (3, 0)), within=30)


@asynccontextmanager
async def away(stream: Stream) -> AsyncIterator[None]:
    await stream.go_away()
    try:
        yield
    finally:
        await stream.come_back()


async def answers(consumed: Any, expected: tuple[int, int]) -> bool:
    with suppress(Unavailable):
        return expected == await consumed.asks.waiting()
    return False
