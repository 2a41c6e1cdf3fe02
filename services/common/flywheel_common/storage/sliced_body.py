"""A request body that is sent slice by slice.

aiohttp writes a body of bytes at once, and the transport then holds a copy of what the socket does not take.
This one is written slice by slice, each when the transport has room for it.
"""

from __future__ import annotations

from typing import Any

from aiohttp import Payload, payload_type

SLICE_BYTES = 256 * 1024


class SlicedBody(bytearray):
    """Bytes that aiohttp sends as a `SlicedPayload`. botocore signs and repeats them like other bytes."""


@payload_type(SlicedBody)
class SlicedPayload(Payload):
    """Writes copies of slices, so that the body can be cleared when the request has ended."""

    def __init__(self, value: SlicedBody, *args: Any, **kwargs: Any) -> None:
        super().__init__(value, *args, **kwargs)
        self._length = self._size = len(value)

    async def write(self, writer: Any) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        end = self._length if content_length is None else min(self._length, content_length)
        for start in range(0, end, SLICE_BYTES):
            await writer.write(bytes(self._value[start : min(end, start + SLICE_BYTES)]))

    async def as_bytes(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return bytes(self._value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return str(self._value, encoding, errors)
