"""Work on the object store, which blocks, on behalf of a call, which has a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from flywheel_common.deadline import in_time
from flywheel_common.errors import Unavailable

T = TypeVar("T")


async def answered_in_time(work: Callable[[], T]) -> T:
    """`work()` in a thread. Raises what it raises, and Unavailable OBJECT_STORE_DOWN shortly before the deadline of the running call; the
    thread then ends by itself, so a file may appear of which nobody hears."""
    async with in_time(_away):
        return await asyncio.to_thread(work)


def _away() -> Unavailable:
    return Unavailable("The object store does not answer now: try again.", reason="OBJECT_STORE_DOWN")
