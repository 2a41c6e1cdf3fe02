"""The body of an S3 part is sent in slices."""

from __future__ import annotations

import os
from typing import Any

from aiohttp.payload import PAYLOAD_REGISTRY

from flywheel_common.storage.sliced_body import SLICE_BYTES, SlicedBody, SlicedPayload


class Writer:
    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def write(self, data: Any) -> None:
        self.written.append(bytes(data))


async def test_a_body_is_written_in_slices_and_again_for_a_retry() -> None:
    content = os.urandom(2 * SLICE_BYTES + 7)
    payload = PAYLOAD_REGISTRY.get(SlicedBody(content))
    assert isinstance(payload, SlicedPayload)
    assert payload.size == len(content)
    for _ in range(2):
        writer: Any = Writer()
        await payload.write(writer)
        assert [SLICE_BYTES, SLICE_BYTES, 7] == [len(data) for data in writer.written]
        assert content == b"".join(writer.written)


async def test_a_written_body_can_be_cleared() -> None:
    body, written = SlicedBody(b"x" * 1000), []

    class Holding:
        async def write(self, data: Any) -> None:
            written.append(data)

    writer: Any = Holding()
    await SlicedPayload(body).write_with_length(writer, 600)
    body.clear()
    assert [b"x" * 600] == written
