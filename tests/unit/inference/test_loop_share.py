"""Rows that become ready together are worked on in slices, between which other callbacks run."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

import pytest

from flywheel_inference.batching.loop_share import LoopShare
from flywheel_inference.prediction.bulk import BulkPredictor
from flywheel_inference.prediction.predictor import Answer, Predictor
from flywheel_inference.requests.request import PredictCall

SHARE, WORK = 1e-3, 1e-4
"""Ten turns use up a share."""
ROWS = 100


class Clock:
    """A clock that only `work` moves; counts the work of each iteration of the event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.iteration = 0
        self.worked: Counter[int] = Counter()
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._count)

    def __call__(self) -> float:
        return self.now

    def _count(self) -> None:
        self.iteration += 1
        self._loop.call_soon(self._count)

    def work(self, seconds: float = WORK) -> None:
        self.now += seconds
        self.worked[self.iteration] += 1


async def test_no_more_turns_begin_in_an_iteration_than_its_share_has_time_for():
    clock = Clock()
    share, order = LoopShare(SHARE, clock), []

    async def row(number: int) -> None:
        await share.turn()
        clock.work()
        order.append(number)

    await asyncio.gather(*[row(number) for number in range(ROWS)])
    assert order == list(range(ROWS))
    assert max(clock.worked.values()) == SHARE / WORK
    assert len(clock.worked) <= 1.2 * ROWS * WORK / SHARE


async def test_longer_work_gets_fewer_turns_in_an_iteration():
    clock = Clock()
    share = LoopShare(SHARE, clock)

    async def row() -> None:
        await share.turn()
        clock.work(5 * WORK)

    await asyncio.gather(*[row() for _ in range(ROWS)])
    counts = list(clock.worked.values())
    assert sum(counts) == ROWS
    # The estimate approaches five times the first one; two turns use up the share.
    assert max(counts[-10:]) <= 3, counts


async def test_a_turn_longer_than_the_share_is_still_given():
    clock = Clock()
    share = LoopShare(SHARE, clock)

    async def row() -> None:
        await share.turn()
        clock.work(20 * SHARE)

    async with asyncio.timeout(10):
        await asyncio.gather(*[row() for _ in range(20)])
    assert sum(clock.worked.values()) == 20


async def test_cancelled_waiters_give_their_turn_to_others():
    clock = Clock()
    share, done = LoopShare(SHARE, clock), []

    async def row(number: int) -> None:
        await share.turn()
        clock.work()
        done.append(number)

    tasks = [asyncio.create_task(row(number)) for number in range(ROWS)]
    await asyncio.sleep(0)
    for task in tasks[10:90]:
        task.cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert done == [*range(10), *range(90, ROWS)]


async def test_lone_turns_do_not_wait():
    share = LoopShare(SHARE, lambda: 0.0)
    for _ in range(3):
        coroutine = share.turn()
        with pytest.raises(StopIteration):
            coroutine.send(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_batch_begins_and_ends_its_rows_in_slices():
    clock = Clock()
    began, ended = Counter[int](), Counter[int]()
    scored = asyncio.Event()

    class Scoring:
        """A predictor that answers all calls at once."""

        async def predict(self, call: PredictCall) -> Answer:
            clock.work()
            began[clock.iteration] += 1
            if sum(began.values()) == ROWS:
                scored.set()
            await scored.wait()
            return cast("Answer", call)

    bulk = BulkPredictor(cast("Predictor", Scoring()), share=LoopShare(SHARE, clock))

    async def answer(row: int) -> int:
        found: Any = await bulk.predict(lambda: cast("PredictCall", row))
        clock.work()
        ended[clock.iteration] += 1
        return int(found)

    results = await bulk.predict_each(
        range(ROWS), answer, refusal=lambda error: pytest.fail(str(error)), size_of=lambda _: 0
    )
    assert results == list(range(ROWS))
    assert max(began.values()) <= SHARE / WORK
    assert max(ended.values()) <= SHARE / WORK
