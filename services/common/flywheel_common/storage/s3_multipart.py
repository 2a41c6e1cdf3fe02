"""Stores a stream as one S3 object, part by part.

While parts are sent, the next one is collected, if a buffer is free.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from flywheel_common.storage.part_buffers import PartBuffers
from flywheel_common.storage.sliced_body import SlicedBody
from flywheel_common.tasks import TaskGroup


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
            async with TaskGroup() as group:
                size = await self._send_parts(aiter(chunks), group)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        if self.upload is not None:
            async with self._request():
                await self._client.complete_multipart_upload(
                    **self._where, UploadId=self.upload, MultipartUpload={"Parts": self._parts}
                )
        return size

    async def _send_parts(self, source: AsyncIterator[bytes], group: TaskGroup) -> int:
        """Send each part when it is collected; a request that fails ends the group."""
        size, ended = 0, False
        while not ended:
            body, ended = await self._buffers.filled(source)
            size += len(body)
            try:
                request = await self._request_for(body, last=ended)
            except BaseException:
                self._buffers.give_back()
                raise
            sending = group.create_task(request)
            # Also when the task is cancelled before it runs.
            sending.add_done_callback(lambda _: self._buffers.give_back())
            del body, request
        return size

    async def _request_for(self, body: SlicedBody, *, last: bool) -> Coroutine[Any, Any, None]:
        """Return the request that sends the next part, or the whole object when there is one part only."""
        if self.upload is None:
            if last:
                return self._put_object(body)
            async with self._request():
                self.upload = (await self._client.create_multipart_upload(**self._where))["UploadId"]
        part: dict[str, Any] = {"PartNumber": len(self._parts) + 1}
        if body:
            self._parts.append(part)
        return self._upload_part(body, part)

    async def _put_object(self, body: SlicedBody) -> None:
        async with self._request():
            await self._client.put_object(**self._where, Body=body or b"")
        body.clear()

    async def _upload_part(self, body: SlicedBody, part: dict[str, Any]) -> None:
        if body:
            async with self._request():
                answer = await self._client.upload_part(
                    **self._where, **part, UploadId=self.upload, Body=body
                )
            part["ETag"] = answer["ETag"]
            body.clear()
