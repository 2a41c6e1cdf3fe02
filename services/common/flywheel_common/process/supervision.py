"""Supervision of background tasks: a task that fails is started again with backoff, a few times in a row.

A task fails when it raises an exception, or when it returns although it should run as long as the process.
Each failure is logged with its traceback and counted in `flywheel_background_failures_total`. The task starts
again after a pause that doubles with each failure in a row. A failure after `healthy_seconds` of work is the
first in a row again. After `max_failures` in a row the supervisor gives up: the process reports NOT_SERVING,
drains and exits with status 1, so that its platform starts a new one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prometheus_client import Counter

from flywheel_common.clock import Clock
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)

Work = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class BackgroundTask:
    """Work beside the calls of a process. `work` is called again after a failure, so it must start from what
    is stored, whatever state an earlier call left behind."""

    name: str
    work: Work
    ends: bool = False
    """Whether the work has an end, such as a preparation. If not, a return counts as a failure."""
    stops_last: bool = False
    """Whether other tasks and calls hand work to this one: it is cancelled after them."""


@dataclass(frozen=True, slots=True)
class RestartRule:
    """When a failed task starts again, and when it does not."""

    max_failures: int = 5
    """Failures in a row after which the supervisor gives up."""
    first_delay_seconds: float = 1.0
    """The longest pause after the first failure; each further failure doubles it."""
    max_delay_seconds: float = 30.0
    healthy_seconds: float = 60.0
    """A task that worked this long before it failed starts a new row of failures."""

    def failures_in_a_row(self, before: int, worked_seconds: float) -> int:
        """The length of the row, `before` failures long, after one more failure."""
        return 1 if worked_seconds >= self.healthy_seconds else before + 1

    def delay_seconds(self, failures: int, jitter: float) -> float:
        """The pause after this many failures in a row; `jitter` in [0, 1) takes up to half of it away, so
        that replicas that failed together do not start together."""
        longest = min(self.max_delay_seconds, self.first_delay_seconds * 2.0 ** (failures - 1))
        return longest * (1.0 - jitter / 2)


RESTARTS = RestartRule()
"""The rule of every process: five failures in a row within some 15 seconds end it."""


class BackgroundFailed(RuntimeError):
    """A background task failed too often in a row; the process exits with status 1."""

    def __init__(self, task: str, failures: int, error: BaseException) -> None:
        self.task = task
        cause = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        why = f"{type(cause).__name__}: {cause}".rstrip(": ")
        super().__init__(f"Background task {task!r} failed {failures} times in a row, at last with {why}.")


class Ended(RuntimeError):
    """The failure of a task that returned, or was cancelled from within, although it has no end."""


class Supervisor:
    """Keeps background tasks running by a restart rule."""

    def __init__(
        self,
        rule: RestartRule,
        clock: Clock,
        failures: Counter,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`failures` has the label `task`."""
        self._rule = rule
        self._clock = clock
        self._failures = failures
        self._jitter = jitter

    async def keep_running(self, task: BackgroundTask) -> None:
        """Runs the task until cancelled, or until work that has an end has reached it. Raises
        BackgroundFailed."""
        counter = self._failures.labels(task.name)
        failures = 0
        while True:
            began = self._clock.monotonic()
            error = await _failure_of(task)
            if error is None:
                return
            counter.inc()
            failures = self._rule.failures_in_a_row(failures, self._clock.monotonic() - began)
            if failures >= self._rule.max_failures:
                log.error(
                    "background task failed too often: the process stops",
                    task=task.name,
                    failures_in_a_row=failures,
                    exc_info=error,
                )
                raise BackgroundFailed(task.name, failures, error) from error
            delay = self._rule.delay_seconds(failures, self._jitter())
            log.error(
                "background task failed: it starts again",
                task=task.name,
                failures_in_a_row=failures,
                delay_seconds=round(delay, 3),
                exc_info=error,
            )
            await self._clock.sleep(delay)


async def _failure_of(task: BackgroundTask) -> Exception | None:
    """Runs the work once; the exception that ended it, or None if it has an end and reached it."""
    try:
        await task.work()
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        # A future that the work waited for was cancelled, for example by a driver that closed.
        return Ended("the task was cancelled from within")
    except Exception as error:
        if _is_cancelled():
            log.error("background task failed while it was stopped", task=task.name, exc_info=error)
            raise asyncio.CancelledError from error
        return error
    if _is_cancelled():
        raise asyncio.CancelledError
    return None if task.ends else Ended("the task returned")


def _is_cancelled() -> bool:
    """Whether the running task is to stop, whatever became of the CancelledError that was raised in it."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
