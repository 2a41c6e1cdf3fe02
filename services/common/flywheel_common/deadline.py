"""A deadline is a budget: what a call has left is what its own calls get, less a reserve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flywheel_common.context import Call, call_timeout, current_call, left_seconds

__all__ = ["budget", "call_timeout", "left_seconds", "remaining"]


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
