"""Batching without a timer.

An idle batcher sends at once; items that arrive while a batch runs form the next one. A batch that runs for
longer than `stall_seconds` frees its slot, so that the next one can start. Each item has its own deadline on
the loop's clock. When it passes, the caller gets `Expired`, even if the batch is still running.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from flywheel_inference.batching.busy_share import BusyShare

I = TypeVar("I")  # noqa: E741 - item
R = TypeVar("R")


class Expired(Exception):
    """The item's deadline passed before its batch was done."""


class Entry(Generic[I, R]):
    """An item and the future of its caller. `live` is false once the future is answered, expired or
    cancelled."""

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
"""Processes a batch; returns one result or exception per entry, in order. Raising fails every entry."""


class Batcher(Generic[I, R]):
    """Groups single calls into batches of at most `max_rows` and `max_bytes` (by `size_of`; a larger item is
    alone). At most `slots` batches run at once while none
    stalls, and never more than `max_slots`."""

    def __init__(
        self,
        run: Run[I, R],
        *,
        max_rows: int = 256,
        slots: int = 1,
        max_slots: int = 8,
        stall_seconds: float = 0.05,
        max_bytes: int = 8 * 1024 * 1024,
        size_of: Callable[[I], int] = lambda _: 0,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._slots = slots
        self._max_slots = max(slots, max_slots)
        self._stall_seconds = stall_seconds
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._loop = asyncio.get_running_loop()
        # A batch belongs to several callers, so it runs in the batcher's context, not in one of theirs.
        self._context = contextvars.copy_context()
        self._waiting: deque[Entry[I, R]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._share = BusyShare()
        self._scheduled = False
        self._closed = False

    @property
    def idle(self) -> bool:
        """No item waits and no batch runs."""
        return not self._tasks and not self._waiting

    @property
    def waiting(self) -> int:
        """Number of items whose callers wait and that are in no batch yet."""
        return sum(entry.live for entry in self._waiting)

    @property
    def utilisation(self) -> float:
        """Busy share of the slots, averaged over about ten seconds."""
        return self._share.at(self._loop.time())

    def submit(self, item: I, deadline: float) -> asyncio.Future[R]:
        """The future result of an item. `deadline` is on the loop's clock."""
        if self._closed:
            raise RuntimeError("the batcher is closed")
        entry: Entry[I, R] = Entry(item, deadline, self._loop.create_future())
        entry.timer = self._loop.call_at(deadline, _expire, entry)
        self._waiting.append(entry)
        self._schedule()
        return entry.future

    async def close(self) -> None:
        """Refuses new items, and returns when every accepted item has its result."""
        self._closed = True
        while self._tasks or self._waiting:
            self._send()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _schedule(self) -> None:
        # Deferred by one iteration of the loop, so that callers of the same iteration share a batch.
        if not self._scheduled and self._busy < self._slots and len(self._tasks) < self._max_slots:
            self._scheduled = True
            self._loop.call_soon(self._send, context=self._context)

    def _send(self) -> None:
        self._scheduled = False
        while self._waiting and self._busy < self._slots and len(self._tasks) < self._max_slots:
            batch: list[Entry[I, R]] = []
            size = 0
            while self._waiting and len(batch) < self._max_rows:
                entry = self._waiting[0]
                if entry.live:
                    size += self._size_of(entry.item)
                    if batch and size > self._max_bytes:
                        break
                    batch.append(entry)
                elif entry.timer is not None:
                    entry.timer.cancel()
                self._waiting.popleft()
            if batch:
                self._start(batch)

    def _start(self, batch: list[Entry[I, R]]) -> None:
        self._count(1)
        task = self._loop.create_task(self._process(batch))
        self._tasks.add(task)
        holds_slot = True

        def release() -> None:
            nonlocal holds_slot
            if holds_slot:
                holds_slot = False
                self._count(-1)
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

    def _count(self, change: int) -> None:
        self._busy += change
        self._share.step(self._busy / self._slots, self._loop.time())

    async def _process(self, batch: list[Entry[I, R]]) -> None:
        try:
            results = await self._run(batch)
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} items got {len(results)} results")
        except Exception as error:  # noqa: BLE001 - passed on to every caller of the batch
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
