"""A deadline is a budget: what a call has left is what its own calls get, less a reserve."""

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
"""What an answer is given to reach the caller before its deadline."""


def remaining(context: Any, reserve: float = 0.0) -> float | None:
    """Seconds left of a gRPC servicer context less `reserve` (at least 0); None when the client set no deadline."""
    left: float | None = context.time_remaining()
    return None if left is None else max(0.0, left - reserve)


@contextmanager
def budget(seconds: float) -> Iterator[None]:
    """Gives the block a budget of `seconds` (never more than the surrounding one): `call_timeout` sees it.
    It does not interrupt the block: combine with asyncio.timeout."""
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
    """How long the running call may still work so that its answer is there before the deadline; None when it has none."""
    left = left_seconds()
    return None if left is None else max(left - ANSWER_SECONDS, left / 2)


def call_timeout(most_seconds: float) -> float:
    """The timeout for an outgoing call: at most `most_seconds`, and no longer than the running call may still work, so that its
    caller can be told when the peer hangs. Raises DeadlineExceeded when nothing is left, so that no hopeless call is sent."""
    left = seconds_to_answer()
    if left is None:
        return most_seconds
    if left <= 0:
        raise DeadlineExceeded(
            "The call's budget is used up before its next step could start: give it a longer deadline."
        )
    return min(left, most_seconds)


@asynccontextmanager
async def in_time(late: Callable[[], FlywheelError]) -> AsyncIterator[None]:
    """Interrupts the block shortly before the running call's deadline and raises `late()`: the caller hears what does not answer,
    where DEADLINE_EXCEEDED would not say it. Without a deadline the block takes its time."""
    try:
        async with asyncio.timeout(seconds_to_answer()) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise late() from error
