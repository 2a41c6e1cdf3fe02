"""The clock as a dependency, for heartbeats, timeouts and audit times.

Decisions about streams use event time instead (docs/architecture.md, Time).
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """A clock: `now` is UTC and may jump, `monotonic` (seconds) never goes back, `sleep` waits at least that
    long."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock for tests that only `advance` moves; sleepers wake in the order of their due times."""

    def __init__(self, start: datetime = datetime(2013, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._elapsed + seconds, woken))
        await woken

    def advance(self, seconds: float) -> None:
        """Moves time forward and wakes sleepers that are due; they run after `await asyncio.sleep(0)`."""
        if seconds < 0:
            raise ValueError("a clock cannot go back")
        self._elapsed += seconds
        self._now += timedelta(seconds=seconds)
        due = sorted((s for s in self._sleepers if s[0] <= self._elapsed), key=lambda s: s[0])
        self._sleepers = [s for s in self._sleepers if s[0] > self._elapsed]
        for _, woken in due:
            if not woken.done():
                woken.set_result(None)
