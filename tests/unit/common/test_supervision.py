"""Restart of failed background tasks: the rule, the count, and when the supervisor gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from flywheel_common.clock import ManualClock
from flywheel_common.process.supervision import BackgroundFailed, BackgroundTask, RestartRule, Supervisor
from flywheel_common.telemetry.metrics import background_failures

RULE = RestartRule(max_failures=5, first_delay_seconds=1.0, max_delay_seconds=30.0, healthy_seconds=60.0)


class Supervised:
    """A supervised task on a manual clock. `starts` are the times at which its work began; each lasts
    `seconds` before `work` decides how it ends."""

    def __init__(
        self,
        work: Callable[[], Awaitable[None]],
        *,
        seconds: float = 0.0,
        ends: bool = False,
        jitter: float = 0.0,
    ) -> None:
        self.clock, self.registry = ManualClock(), CollectorRegistry()
        self.starts: list[float] = []

        async def timed() -> None:
            self.starts.append(self.clock.monotonic())
            await self.clock.sleep(seconds)
            await work()

        supervisor = Supervisor(RULE, self.clock, background_failures(self.registry), lambda: jitter)
        self.task = asyncio.create_task(supervisor.keep_running(BackgroundTask("work", timed, ends=ends)))

    async def advance(self, seconds: float) -> None:
        """Moves the clock in steps of a quarter of a second; the work and the supervisor run until they
        wait."""
        for step in range(round(seconds * 4) + 1):
            if step:
                self.clock.advance(0.25)
            for _ in range(5):
                await asyncio.sleep(0)

    @property
    def failures(self) -> float | None:
        return self.registry.get_sample_value("flywheel_background_failures_total", {"task": "work"})

    async def __aenter__(self) -> Self:
        await self.advance(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError, BackgroundFailed):
            await self.task


async def broken() -> None:
    raise RuntimeError("broken")


async def test_the_pause_doubles_and_the_fifth_failure_in_a_row_is_the_last() -> None:
    async with Supervised(broken) as supervised:
        await supervised.advance(60)
        with pytest.raises(BackgroundFailed, match=r"'work' failed 5 times in a row.*RuntimeError: broken"):
            await supervised.task
        assert supervised.starts == [0, 1, 3, 7, 15]
        assert supervised.failures == 5


async def test_jitter_takes_up_to_half_of_the_pause_away() -> None:
    async with Supervised(broken, jitter=0.5) as supervised:
        await supervised.advance(15)
        assert supervised.starts == [0, 0.75, 2.25, 5.25, 11.25]


async def test_a_healthy_while_starts_a_new_row_of_failures() -> None:
    async with Supervised(broken, seconds=60) as supervised:
        await supervised.advance(61 * 10)
        assert supervised.starts == [61.0 * n for n in range(11)]
        assert supervised.failures == 10
        assert not supervised.task.done()


async def test_less_than_a_healthy_while_continues_the_row() -> None:
    async with Supervised(broken, seconds=59) as supervised:
        await supervised.advance(59 * 5 + 15)
        assert supervised.starts == [0, 60, 121, 184, 251]
        with pytest.raises(BackgroundFailed):
            await supervised.task


async def test_a_return_counts_as_a_failure() -> None:
    async def returns() -> None:
        pass

    async with Supervised(returns) as supervised:
        await supervised.advance(15)
        with pytest.raises(BackgroundFailed, match=r"5 times in a row.*the task returned"):
            await supervised.task


async def test_work_with_an_end_is_done_when_it_returns() -> None:
    attempts = 0

    async def second_time_lucky() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise RuntimeError("broken")

    async with Supervised(second_time_lucky, ends=True) as supervised:
        await supervised.advance(5)
        assert supervised.task.done()
        assert await supervised.task is None
        assert (attempts, supervised.failures) == (2, 1)


async def test_a_cancellation_from_within_counts_as_a_failure() -> None:
    async def waits_for_a_cancelled_future() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with Supervised(waits_for_a_cancelled_future) as supervised:
        await supervised.advance(1)
        assert supervised.failures == 2


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fails_when_cancelled() -> None:
    try:
        await for_ever()
    finally:
        raise RuntimeError("broken")


async def swallows_the_cancellation() -> None:
    with suppress(asyncio.CancelledError):
        await for_ever()


@pytest.mark.parametrize("work", [for_ever, fails_when_cancelled, swallows_the_cancellation])
async def test_a_cancelled_task_ends_whatever_its_work_does(work: Callable[[], Awaitable[None]]) -> None:
    async with Supervised(work) as supervised:
        supervised.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await supervised.task
        assert (supervised.starts, supervised.failures) == ([0], 0)


async def test_a_task_is_cancelled_in_a_pause() -> None:
    async with Supervised(broken) as supervised:
        await supervised.advance(0.5)
        supervised.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await supervised.task


@given(st.integers(1, 200), st.floats(0.0, 1.0, exclude_max=True))
def test_a_pause_is_at_least_half_a_second_and_at_most_thirty(failures: int, jitter: float) -> None:
    assert 0.5 <= RULE.delay_seconds(failures, jitter) <= 30.0
