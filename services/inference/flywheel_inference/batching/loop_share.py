"""A share of each iteration of the event loop for work that comes in large groups (ADR 0100).

The rows of a batch become ready together: their requests with the call, their answers with the model's batch.
Without a limit they run in one iteration, in which no other call is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

FIRST_ESTIMATE_SECONDS = 100e-6
"""How long the work of a turn takes, before any was measured."""
WEIGHT = 0.25
"""Of the last measurement in the estimate."""


class LoopShare:
    """Gives turns to tasks of one event loop, in the order in which they were asked for: in one iteration as
    many as take about `seconds`, and at least one. The work of a turn ends where its task next waits."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.thread_time) -> None:
        """`clock`: CPU time of the thread, so that other processes on its core make no smaller slices."""
        self._seconds = seconds
        self._clock = clock
        self._each = FIRST_ESTIMATE_SECONDS
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._until: float | None = None
        """When the share of this iteration ends; None: nothing has used it."""
        self._began = 0.0
        self._loop = asyncio.get_running_loop()

    async def turn(self) -> None:
        """Returns when the task may go on: at once, or in a later iteration."""
        now = self._clock()
        if self._until is None:
            self._until = now + self._seconds
            self._loop.call_soon(self._next_iteration)
        if not self._waiting and now < self._until:
            return
        turn = self._loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next_iteration(self) -> None:
        if not self._waiting:
            self._until = None
            return
        # The callbacks between `_begin` and `_end` are those of the tasks that get a turn here.
        self._until = 0.0
        self._loop.call_soon(self._begin)
        given, most = 0, max(1, int(self._seconds / self._each))
        while self._waiting and given < most:
            turn = self._waiting.popleft()
            if not turn.done():  # else its task was cancelled
                turn.set_result(None)
                given += 1
        self._loop.call_soon(self._end, given)

    def _begin(self) -> None:
        self._began = self._clock()

    def _end(self, given: int) -> None:
        if given:
            self._each += WEIGHT * ((self._clock() - self._began) / given - self._each)
        self._next_iteration()
