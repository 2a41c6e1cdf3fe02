"""Ends streams whose callers neither send nor take data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from flywheel_registry.artifacts.errors import StreamIdle

Message = TypeVar("Message")


async def received(requests: AsyncIterator[Message], seconds: float) -> AsyncIterator[Message]:
    """Pass messages on. Raises StreamIdle when the next one does not come within `seconds`."""
    messages = aiter(requests)
    while True:
        try:
            async with asyncio.timeout(seconds):
                message = await anext(messages, None)
        except TimeoutError:
            raise StreamIdle(f"No message came for {seconds:g} s.") from None
        if message is None:
            return
        # Taken out of this frame, so that it does not keep the message while its caller works.
        taking, message = [message], None
        yield taking.pop()


async def taken(answers: AsyncIterator[Message], seconds: float) -> AsyncIterator[Message]:
    """Pass answers on. Cancels the call when one is not taken within `seconds`.

    No status can reach a caller that takes nothing: it would wait behind the data.
    """
    call = asyncio.current_task()
    assert call is not None
    loop = asyncio.get_running_loop()
    async for answer in answers:
        timer = loop.call_later(seconds, call.cancel)
        try:
            yield answer
        finally:
            timer.cancel()
