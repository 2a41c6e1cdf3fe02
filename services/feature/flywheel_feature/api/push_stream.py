"""Runs a stream of pushes: answers in order, with a bounded number in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from flywheel_common.errors import FlywheelError

IN_FLIGHT = 16

Push = TypeVar("Push")
Answer = TypeVar("Answer")


async def answered_in_order(
    pushes: AsyncIterable[Push], push: Callable[[Push], Awaitable[Answer]], *, in_flight: int = IN_FLIGHT
) -> AsyncIterator[Answer | FlywheelError]:
    """The answer of each push, or the error that refused it, in order; an error does not affect other pushes.

    At most `in_flight` pushes are running, or answered but not yet taken by the caller; at that limit no more
    pushes are read.
    """
    slots = asyncio.Semaphore(in_flight)
    started: asyncio.Queue[asyncio.Future[Answer | FlywheelError] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for item in pushes:
                await slots.acquire()
                started.put_nowait(asyncio.ensure_future(_outcome(push(item))))
        finally:
            started.put_nowait(None)

    reading = asyncio.ensure_future(read())
    taken: asyncio.Future[Answer | FlywheelError] | None = None
    try:
        while (taken := await started.get()) is not None:
            yield await taken
            slots.release()
        await reading
    finally:
        # When the caller stops reading answers, the pushes that are still running are cancelled.
        left = [reading, taken, *(started.get_nowait() for _ in range(started.qsize()))]
        tasks = [task for task in left if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _outcome(pushed: Awaitable[Answer]) -> Answer | FlywheelError:
    try:
        return await pushed
    except FlywheelError as error:
        return error
