"""Deadlines as budgets: outgoing calls get what the running call has left, less a reserve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from flywheel_common.context import Call, current_call, left_seconds
from flywheel_common.errors import DeadlineExceeded, FlywheelError

__all__ = ["budget", "call_timeout", "in_time", "left_seconds", "remaining", "seconds_to_answer"]

ANSWER_SECONDS = 0.3
"""Reserve for sending the response before the deadline of the caller."""


def remaining(context: Any, reserve: float = 0.0) -> float | None:
    """Seconds left of a gRPC servicer context less `reserve`, at least 0; None without a client deadline."""
    left: float | None = context.time_remaining()
    return None if left is None else max(0.0, left - reserve)


@contextmanager
def budget(seconds: float) -> Iterator[None]:
    """Gives the block a budget of `seconds`, at most that of the surrounding call; `call_timeout` uses it.
    Does not interrupt the block: combine with asyncio.timeout."""
    outer = current_call.get()
    deadline = time.monotonic() + seconds
    if outer is not None and outer.deadline is not None:
        deadline = min(deadline, outer.deadline)
    call = (
        Call()
        if outer is None
        else Call(outer.method, outer.principal, outer.actor, None, outer.traceparent, outer.request_id)
    )
    call.deadline = deadline
    token = current_call.set(call)
    try:
        yield
    finally:
        current_call.reset(token)


def seconds_to_answer() -> float | None:
    """Seconds until the running call must start its response; None without a deadline."""
    left = left_seconds()
    return None if left is None else max(left - ANSWER_SECONDS, left / 2)


def call_timeout(most_seconds: float) -> float:
    """The timeout of an outgoing call: at most `most_seconds`, and short enough that the running call can
    still report a peer that hangs. Raises DeadlineExceeded when no time is left."""
    left = seconds_to_answer()
    if left is None:
        return most_seconds
    if left <= 0:
        raise DeadlineExceeded(
            "The deadline leaves no time for the next step of the call: set a longer deadline."
        )
    return min(left, most_seconds)


@asynccontextmanager
async def in_time(late: Callable[[], FlywheelError]) -> AsyncIterator[None]:
    """Interrupts the block shortly before the deadline of the running call and raises `late()`, which names
    the dependency that does not answer; DEADLINE_EXCEEDED would not. Without a deadline the block is not
    interrupted."""
    try:
        async with asyncio.timeout(seconds_to_answer()) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise late() from error
