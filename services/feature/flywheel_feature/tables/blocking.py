"""Run blocking work on the object store within the deadline of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from flywheel_common.deadline import in_time
from flywheel_feature.tables.errors import ObjectStoreDown

T = TypeVar("T")


async def answered_in_time(work: Callable[[], T]) -> T:
    """Return `work()`, run in a thread.

    Raises what `work` raises, and Unavailable OBJECT_STORE_DOWN shortly before the deadline of the running
    call. The thread is not stopped then, so that its file may still be written.
    """
    async with in_time(_timed_out):
        return await asyncio.to_thread(work)


def _timed_out() -> ObjectStoreDown:
    return ObjectStoreDown("The object store did not answer before the deadline: retry.")
