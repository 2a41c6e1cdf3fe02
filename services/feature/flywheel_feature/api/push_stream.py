"""A stream of pushes: answered one by one in order, with a bounded number under way."""

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
    """An answer, or the error that refused it, per push in the order of the pushes; a refused one harms no other.

    At most `in_flight` are under way or answered and not yet taken; nothing more is read meanwhile.
    """
    slots = asyncio.Semaphore(in_flight)
    under_way: asyncio.Queue[asyncio.Future[Answer | FlywheelError] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for item in pushes:
                await slots.acquire()
                under_way.put_nowait(asyncio.ensure_future(_outcome(push(item))))
        finally:
            under_way.put_nowait(None)

    reading = asyncio.ensure_future(read())
    taken: asyncio.Future[Answer | FlywheelError] | None = None
    try:
        while (taken := await under_way.get()) is not None:
            yield await taken
            slots.release()
        await reading
    finally:
        # Whoever stops listening stops the pushes that nobody will hear of.
        left = [reading, taken, *(under_way.get_nowait() for _ in range(under_way.qsize()))]
        started = [task for task in left if task is not None]
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)


async def _outcome(pushed: Awaitable[Answer]) -> Answer | FlywheelError:
    try:
        return await pushed
    except FlywheelError as error:
        return error
