"""Bounds the parts of streams that a process holds in memory before it stores them.

Streams take turns part by part, first come first served. A stream whose bytes come slowly loses its turn and
fails while others wait, so that slow callers cannot keep all buffers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from flywheel_common.storage.errors import StreamTooSlow
from flywheel_common.storage.sliced_body import SlicedBody

PART_BYTES = 5 * 1024 * 1024
"""The smallest part that S3 accepts: what a buffer holds, and at most one chunk more."""
FILL_SECONDS = 20.0
"""How long a stream may take to fill its buffer while others wait for one: 256 KiB a second."""

LOOK_SECONDS = 0.1
"""How often a stream whose turn is over looks whether others wait."""


class PartBuffers:
    """`count` buffers for the parts of all streams together."""

    def __init__(self, count: int, fill_seconds: float = FILL_SECONDS) -> None:
        self._free = asyncio.Semaphore(count)
        self._fill_seconds = fill_seconds
        self._waiting = 0

    async def filled(self, source: AsyncIterator[bytes]) -> tuple[SlicedBody, bool]:
        """Take a buffer and fill it with the next part of `source`; return it, and whether the source ended.

        Give it back when its bytes are stored. Raises StreamTooSlow, and what `source` raises.
        """
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._fill(source)
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """Free one buffer."""
        self._free.release()

    async def _fill(self, source: AsyncIterator[bytes]) -> tuple[SlicedBody, bool]:
        body, turn_ends = SlicedBody(), asyncio.get_running_loop().time() + self._fill_seconds
        while len(body) < PART_BYTES:
            chunk = await self._next(source, turn_ends)
            if chunk is None:
                return body, True
            body += chunk
        return body, False

    async def _next(self, source: AsyncIterator[bytes], turn_ends: float) -> bytes | None:
        """Return the next chunk, None at the end. Raises StreamTooSlow after `turn_ends` if others wait."""
        loop = asyncio.get_running_loop()
        coming: asyncio.Task[bytes | None] = asyncio.ensure_future(_advance(source))
        try:
            while not (await asyncio.wait({coming}, timeout=max(turn_ends - loop.time(), LOOK_SECONDS)))[0]:
                if self._waiting and loop.time() >= turn_ends:
                    raise StreamTooSlow(
                        f"A part of {PART_BYTES >> 20} MiB did not arrive within {self._fill_seconds:g} s "
                        "while others wait."
                    )
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
        return coming.result()


async def _advance(source: AsyncIterator[bytes]) -> bytes | None:
    return await anext(source, None)
