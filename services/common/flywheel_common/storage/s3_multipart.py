"""Stores a stream as one S3 object, part by part.

While a part is sent, the next one is collected, if a buffer is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from flywheel_common.storage.part_buffers import PartBuffers
from flywheel_common.storage.sliced_body import SlicedBody


class MultipartUpload:
    """One stream on its way to the object `where` (bucket and key).

    `request` maps the errors of one request. `upload` is the id of the multipart upload, None before there is
    one.
    """

    def __init__(
        self,
        client: Any,
        where: dict[str, str],
        request: Callable[[], AbstractAsyncContextManager[None]],
        buffers: PartBuffers,
    ) -> None:
        self._client = client
        self._where = where
        self._request = request
        self._buffers = buffers
        self._parts: list[dict[str, Any]] = []
        self.upload: str | None = None

    async def store(self, chunks: AsyncIterable[bytes]) -> int:
        """Store all chunks and return their size in bytes. Without the last chunk nothing is visible."""
        source, size, ended = aiter(chunks), 0, False
        sending: asyncio.Task[None] | None = None
        try:
            while not ended:
                body, ended = await self._buffers.filled(source)
                size += len(body)
                if sending is not None:
                    try:
                        await sending
                    except BaseException:
                        self._buffers.give_back()
                        raise
                sending = asyncio.create_task(self._send(body, whole=ended and self.upload is None))
                del body
            assert sending is not None
            await sending
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        if self.upload is not None:
            async with self._request():
                await self._client.complete_multipart_upload(
                    **self._where, UploadId=self.upload, MultipartUpload={"Parts": self._parts}
                )
        return size

    async def _send(self, body: SlicedBody, *, whole: bool) -> None:
        """Send a part, or with `whole` the object, and give its buffer back."""
        client, where = self._client, self._where
        try:
            async with self._request():
                if whole:
                    await client.put_object(**where, Body=bytes(body))
                elif body:
                    if self.upload is None:
                        self.upload = (await client.create_multipart_upload(**where))["UploadId"]
                    number = len(self._parts) + 1
                    answer = await client.upload_part(
                        **where, UploadId=self.upload, PartNumber=number, Body=body
                    )
                    self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            body.clear()
        finally:
            self._buffers.give_back()
