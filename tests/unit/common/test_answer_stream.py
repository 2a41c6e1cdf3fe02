"""Answers of a stream: their order, the bound of requests in flight, and no task left at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flywheel_common.errors import InvalidArgument
from flywheel_common.grpc.answer_stream import answered_in_order, answered_when_ready
from tests.support.builders.feature_units import run_event_loop

BOTH = pytest.mark.parametrize("answered", [answered_in_order, answered_when_ready])


async def numbers(count: int) -> AsyncIterator[int]:
    for i in range(count):
        yield i


async def test_answers_keep_the_order_of_requests() -> None:
    async def answer(number: int) -> int:
        await asyncio.sleep(0.001 * (7 - number % 7))
        return number

    assert [a async for a in answered_in_order(numbers(40), answer)] == list(range(40))


async def test_answers_that_are_ready_overtake() -> None:
    gates = [asyncio.Event() for _ in range(4)]

    async def answer(number: int) -> int:
        await gates[number].wait()
        return number

    answers = answered_when_ready(numbers(4), answer)
    for number in (3, 2, 0, 1):
        gates[number].set()
        assert await anext(answers) == number
    with pytest.raises(StopAsyncIteration):
        await anext(answers)


@BOTH
async def test_requests_in_flight_and_unread_answers_are_bounded(answered: Any) -> None:
    started = 0

    async def answer(number: int) -> int:
        nonlocal started
        started += 1
        return number

    answers = answered(numbers(100), answer, in_flight=4)
    assert await anext(answers) == 0
    await run_event_loop()
    assert started == 4
    assert [a async for a in answers] == list(range(1, 100))


@BOTH
async def test_a_failed_stream_raises_and_a_closed_one_stops_its_requests(answered: Any) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise InvalidArgument("garbled")

    async def same(number: int) -> int:
        return number

    got = []
    with pytest.raises(InvalidArgument, match="garbled"):
        async for answer in answered(broken(), same):
            got.append(answer)  # noqa: PERF401 - what came before the error counts
    assert got == [1]

    async def never(number: int) -> int:
        await asyncio.Event().wait()
        return number

    answers = answered(numbers(10), never)
    waiting = asyncio.ensure_future(anext(answers))
    await run_event_loop()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await answers.aclose()
    # A leaked task would fail the test.
    assert len(asyncio.all_tasks()) == 1
