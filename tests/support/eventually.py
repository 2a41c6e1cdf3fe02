"""Waiting for a condition."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def eventually(check: Callable[[], Any], *, within: float = 10.0, every: float = 0.02) -> Any:
    """Calls `check` (sync or async) until its result is true, and returns the result. An AssertionError
    counts as false. Raises AssertionError after `within` seconds."""
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
