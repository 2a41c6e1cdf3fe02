"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def eventually(check: Callable[[], Any], *, within: float = 10.0, every: float = 0.02) -> Any:
    """Calls `check` (sync or async) until it returns something true, and returns that. An AssertionError inside
    counts as not yet. Raises AssertionError with the last one when `within` seconds are over."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + within
    while True:
        last: AssertionError | None = None
        result: Any = None
        try:
            result = check()
            if inspect.isawaitable(result):
                result = await result
        except AssertionError as error:
            last = error
        if last is None and result:
            return result
        if loop.time() >= give_up:
            raise AssertionError(f"not true within {within:g} s (last result: {result!r})") from last
        await asyncio.sleep(every)
