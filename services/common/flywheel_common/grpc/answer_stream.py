"""Answers of a bidirectional stream, in order or as they are ready, with a bounded number in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any, TypeVar

IN_FLIGHT = 16

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def answered_in_order(
    requests: AsyncIterable[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    *,
    in_flight: int = IN_FLIGHT,
) -> AsyncGenerator[Answer, None]:
    """The answer of each request, in order. `answer` returns the errors of a request as answers: an exception
    ends the stream.

    At most `in_flight` requests are running, or answered but not yet taken by the caller; at that limit no
    more requests are read. When reading fails, the answers to the requests before come first.
    """
    slots = asyncio.Semaphore(in_flight)
    started: asyncio.Queue[asyncio.Future[Answer] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for item in requests:
                await slots.acquire()
                started.put_nowait(asyncio.ensure_future(answer(item)))
        finally:
            started.put_nowait(None)

    reading = asyncio.ensure_future(read())
    taken: asyncio.Future[Answer] | None = None
    try:
        while (taken := await started.get()) is not None:
            yield await taken
            slots.release()
        await reading
    finally:
        # When the caller stops reading answers, the requests that are still running are cancelled.
        left = [reading, taken, *(started.get_nowait() for _ in range(started.qsize()))]
        await _cancel([task for task in left if task is not None])


async def answered_when_ready(
    requests: AsyncIterable[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    *,
    in_flight: int = IN_FLIGHT,
) -> AsyncGenerator[Answer, None]:
    """Like `answered_in_order`, but answers may overtake each other: the caller must know which request an
    answer belongs to."""
    slots = asyncio.Semaphore(in_flight)
    ended: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()
    running: set[asyncio.Future[Any]] = set()

    def start(task: asyncio.Future[Any]) -> None:
        running.add(task)
        task.add_done_callback(ended.put_nowait)

    async def read() -> None:
        async for item in requests:
            await slots.acquire()
            start(asyncio.ensure_future(answer(item)))

    reading = asyncio.ensure_future(read())
    start(reading)
    try:
        while running:
            task = await ended.get()
            running.discard(task)
            if task is not reading:
                yield task.result()
                slots.release()
        await reading
    finally:
        await _cancel([reading, *running])


async def _cancel(tasks: list[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
