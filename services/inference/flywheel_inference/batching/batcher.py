"""Batching without a timer: send at once when idle; what arrives while a batch is out forms the next one.

A batch that is out for longer than `stall_seconds` no longer holds the others back: another slot opens. Each item has a
deadline of its own on the loop's clock; when it passes, the caller gets `Expired`, whatever the batch is doing.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

I = TypeVar("I")  # noqa: E741 - item
R = TypeVar("R")


class Expired(Exception):
    """The item's own deadline passed before its batch answered."""


class BadBatch(Exception):
    """The batch was refused because of its content: it is cut in half until the bad rows stand alone.
    `cause` is what a row that stands alone gets."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Entry(Generic[I, R]):
    """One waiting caller. `live` is false once its future was answered, expired or cancelled."""

    __slots__ = ("deadline", "future", "item", "timer")

    def __init__(self, item: I, deadline: float, future: asyncio.Future[R]) -> None:
        self.item = item
        self.deadline = deadline
        self.future = future
        self.timer: asyncio.TimerHandle | None = None

    @property
    def live(self) -> bool:
        return not self.future.done()


Run = Callable[[list[Entry[I, R]]], Awaitable[Sequence[R | Exception]]]
"""Answers a batch, in order: one result or exception per entry. Raising fails every entry of the batch alike."""


class Coalescer(Generic[I, R]):
    """Turns single calls into batches of at most `max_rows`, at most `slots` of them out at once while none stalls,
    and never more than `max_slots`."""

    def __init__(
        self,
        run: Run[I, R],
        *,
        max_rows: int = 256,
        slots: int = 1,
        max_slots: int = 8,
        stall_seconds: float = 0.05,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._slots = slots
        self._max_slots = max(slots, max_slots)
        self._stall_seconds = stall_seconds
        self._loop = asyncio.get_running_loop()
        # A batch belongs to none of its callers: it runs in the context in which the coalescer was made.
        self._context = contextvars.copy_context()
        self._waiting: deque[Entry[I, R]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._scheduled = False
        self._closed = False

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is out."""
        return not self._tasks and not self._waiting

    @property
    def waiting(self) -> int:
        """Items not sent yet."""
        return len(self._waiting)

    def submit(self, item: I, deadline: float) -> asyncio.Future[R]:
        """The future answer. `deadline` is on the loop's clock."""
        if self._closed:
            raise RuntimeError("the coalescer is closed")
        entry: Entry[I, R] = Entry(item, deadline, self._loop.create_future())
        entry.timer = self._loop.call_at(deadline, _expire, entry)
        self._waiting.append(entry)
        self._schedule()
        return entry.future

    async def close(self) -> None:
        """Answers what waits or is out, then refuses new items."""
        self._closed = True
        while self._tasks or self._waiting:
            self._send()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _schedule(self) -> None:
        # One turn of the loop later: callers that are ready in the same turn share the batch.
        if not self._scheduled and self._busy < self._slots and len(self._tasks) < self._max_slots:
            self._scheduled = True
            self._loop.call_soon(self._send, context=self._context)

    def _send(self) -> None:
        self._scheduled = False
        while self._waiting and self._busy < self._slots and len(self._tasks) < self._max_slots:
            batch: list[Entry[I, R]] = []
            while self._waiting and len(batch) < self._max_rows:
                entry = self._waiting.popleft()
                if entry.live:
                    batch.append(entry)
                elif entry.timer is not None:
                    entry.timer.cancel()
            if batch:
                self._start(batch)

    def _start(self, batch: list[Entry[I, R]]) -> None:
        self._busy += 1
        task = self._loop.create_task(self._answer(batch))
        self._tasks.add(task)
        holds_slot = True

        def release() -> None:
            nonlocal holds_slot
            if holds_slot:
                holds_slot = False
                self._busy -= 1
                self._send()

        stall = self._loop.call_later(self._stall_seconds, release)

        def finished(task: asyncio.Task[None]) -> None:
            stall.cancel()
            self._tasks.discard(task)
            if holds_slot:
                release()
            else:
                self._send()
            if task.cancelled():
                for entry in batch:
                    _settle(entry, Expired("the batch was cancelled"))

        task.add_done_callback(finished)

    async def _answer(self, batch: list[Entry[I, R]]) -> None:
        try:
            results = await self._run(batch)
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} rows got {len(results)} answers")
        except BadBatch as bad:
            if len(batch) == 1:
                _settle(batch[0], bad.cause)
                return
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                if alive := [entry for entry in half if entry.live]:
                    await self._answer(alive)
            return
        except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
            for entry in batch:
                _settle(entry, error)
            return
        for entry, result in zip(batch, results, strict=True):
            _settle(entry, result)


def _expire(entry: Entry[I, R]) -> None:
    if not entry.future.done():
        entry.future.set_exception(Expired())


def _settle(entry: Entry[I, R], result: R | Exception) -> None:
    if entry.timer is not None:
        entry.timer.cancel()
        entry.timer = None
    if entry.future.done():
        return
    if isinstance(result, Exception):
        entry.future.set_exception(result)
    else:
        entry.future.set_result(result)
