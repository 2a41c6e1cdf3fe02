"""Stores a stream as one S3 object, part by part.

While a part is sent, the next one is collected, if a buffer is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
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
        """Store all chunks and return their size in bytes. Nothing is visible before the end of `chunks`."""
        try:
            async with asyncio.TaskGroup() as group:
                size = await self._send_parts(aiter(chunks), group)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        if self.upload is not None:
            async with self._request():
                await self._client.complete_multipart_upload(
                    **self._where, UploadId=self.upload, MultipartUpload={"Parts": self._parts}
                )
        return size

    async def _send_parts(self, source: AsyncIterator[bytes], group: asyncio.TaskGroup) -> int:
        """Collect each part while the one before it is sent; a request that fails ends the group."""
        size, ended = 0, False
        sending: asyncio.Task[None] | None = None
        while not ended:
            body, ended = await self._buffers.filled(source)
            size += len(body)
            try:
                if sending is not None:
                    await sending
            except BaseException:
                self._buffers.give_back()
                raise
            sending = group.create_task(self._send(body, whole=ended and self.upload is None))
            # Also when the task is cancelled before it runs.
            sending.add_done_callback(lambda _: self._buffers.give_back())
            del body
        return size

    async def _send(self, body: SlicedBody, *, whole: bool) -> None:
        """Send a part, or with `whole` the object."""
        async with self._request():
            if whole:
                await self._client.put_object(**self._where, Body=body or b"")
            elif body:
                if self.upload is None:
                    self.upload = (await self._client.create_multipart_upload(**self._where))["UploadId"]
                number = len(self._parts) + 1
                answer = await self._client.upload_part(
                    **self._where, UploadId=self.upload, PartNumber=number, Body=body
                )
                self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        body.clear()
