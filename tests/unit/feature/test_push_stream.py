"""A stream of pushes: order of answers, bound of pushes in flight, and no task left at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_feature.api.push_stream import answered_in_order
from tests.support.builders.feature_units import run_event_loop


async def numbers(count: int) -> AsyncIterator[int]:
    for i in range(count):
        yield i


async def test_answers_and_errors_keep_the_order_of_requests() -> None:
    async def push(number: int) -> int:
        await asyncio.sleep(0.001 * (7 - number % 7))
        if number % 5 == 0:
            raise InvalidArgument("no", number=number)
        return number

    got = [a async for a in answered_in_order(numbers(40), push)]
    assert [a.metadata["number"] if isinstance(a, FlywheelError) else a for a in got] == [
        str(i) if i % 5 == 0 else i for i in range(40)
    ]


async def test_pushes_in_flight_and_unread_answers_are_bounded() -> None:
    started = 0

    async def push(number: int) -> int:
        nonlocal started
        started += 1
        return number

    answers = answered_in_order(numbers(100), push, in_flight=4)
    assert await anext(answers) == 0
    await run_event_loop()
    assert started == 4
    assert [a async for a in answers] == list(range(1, 100))


async def test_a_failed_stream_raises_and_a_closed_one_stops_its_pushes() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise InvalidArgument("garbled")

    async def same(number: int) -> int:
        return number

    got = []
    with pytest.raises(InvalidArgument, match="garbled"):
        async for answer in answered_in_order(broken(), same):
            got.append(answer)  # noqa: PERF401 - what came before the error counts
    assert got == [1]

    async def never(number: int) -> int:
        await asyncio.Event().wait()
        return number

    answers = answered_in_order(numbers(10), never)
    waiting = asyncio.ensure_future(anext(answers))
    await run_event_loop()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await answers.aclose()
    # A leaked task would fail the test.
    assert len(asyncio.all_tasks()) == 1
