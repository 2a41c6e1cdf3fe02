"""A stream stored part by part: order, overlap, failures and buffers, with an S3 client in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import pytest

from flywheel_common.storage.part_buffers import PART_BYTES, PartBuffers
from flywheel_common.storage.s3_multipart import MultipartUpload
from tests.support.eventually import eventually

WHERE = {"Bucket": "b", "Key": "k"}


class S3:
    """Stores parts; part `fails` is refused, and part `hangs` waits for `go`."""

    def __init__(self, *, fails: int = 0, hangs: int = 0) -> None:
        self._fails = fails
        self._hangs = hangs
        self.go = asyncio.Event()
        self.parts: dict[int, bytes] = {}
        self.objects: dict[str, bytes] = {}

    async def put_object(self, **request: Any) -> None:
        self.objects[request["Key"]] = bytes(request["Body"])

    async def create_multipart_upload(self, **_: str) -> dict[str, str]:
        return {"UploadId": "u"}

    async def upload_part(self, **request: Any) -> dict[str, str]:
        number = request["PartNumber"]
        if number == self._hangs:
            await self.go.wait()
        if number == self._fails:
            raise ConnectionError("refused")
        self.parts[number] = bytes(request["Body"])
        return {"ETag": f"e{number}"}

    async def complete_multipart_upload(self, **request: Any) -> None:
        parts = request["MultipartUpload"]["Parts"]
        assert [f"e{part['PartNumber']}" for part in parts] == [part["ETag"] for part in parts]
        self.objects[request["Key"]] = b"".join(self.parts[part["PartNumber"]] for part in parts)


def upload(s3: S3, buffers: PartBuffers) -> MultipartUpload:
    return MultipartUpload(s3, WHERE, nullcontext, buffers)


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    for number, size in enumerate(sizes):
        yield bytes([number]) * size


async def all_are_free(buffers: PartBuffers, count: int) -> None:
    async with asyncio.timeout(1):
        for _ in range(count):
            await buffers.filled(chunks(1))


@pytest.mark.parametrize(
    "sizes", [(), (0,), (3,), (PART_BYTES,), (PART_BYTES - 1, 2), (PART_BYTES,) * 3 + (1,)]
)
@pytest.mark.parametrize("count", [1, 2])
async def test_all_bytes_are_stored_in_order(sizes: tuple[int, ...], count: int) -> None:
    s3, buffers = S3(), PartBuffers(count)
    assert sum(sizes) == await upload(s3, buffers).store(chunks(*sizes))
    assert b"".join([chunk async for chunk in chunks(*sizes)]) == s3.objects["k"]
    await all_are_free(buffers, count)


async def test_parts_are_sent_and_collected_at_the_same_time() -> None:
    s3, buffers, read = S3(hangs=1), PartBuffers(3), list[int]()

    async def source() -> AsyncIterator[bytes]:
        async for chunk in chunks(*[PART_BYTES] * 5):
            read.append(chunk[0])
            yield chunk

    storing = asyncio.create_task(upload(s3, buffers).store(source()))
    await eventually(lambda: {2, 3, 4, 5} == set(s3.parts))
    assert [0, 1, 2, 3, 4] == read
    s3.go.set()
    assert 5 * PART_BYTES == await storing
    assert b"".join([chunk async for chunk in chunks(*[PART_BYTES] * 5)]) == s3.objects["k"]


async def test_no_part_is_collected_while_all_buffers_are_taken() -> None:
    s3, buffers, read = S3(hangs=1), PartBuffers(1), list[int]()

    async def source() -> AsyncIterator[bytes]:
        async for chunk in chunks(PART_BYTES, PART_BYTES, PART_BYTES):
            read.append(chunk[0])
            yield chunk

    storing = asyncio.create_task(upload(s3, buffers).store(source()))
    await eventually(lambda: [0] == read)
    await asyncio.sleep(0.05)
    assert [0] == read
    s3.go.set()
    assert 3 * PART_BYTES == await storing


async def test_a_refused_part_ends_a_stream_that_waits_for_its_caller() -> None:
    s3, buffers = S3(fails=1), PartBuffers(2)

    async def source() -> AsyncIterator[bytes]:
        yield bytes(PART_BYTES)
        await asyncio.Event().wait()

    sent = upload(s3, buffers)
    with pytest.raises(ConnectionError, match="refused"):
        async with asyncio.timeout(1):
            await sent.store(source())
    assert ("u", {}) == (sent.upload, s3.objects)
    await all_are_free(buffers, 2)


@pytest.mark.parametrize("hangs", [0, 1, 2])
async def test_a_cancelled_stream_gives_its_buffers_back(hangs: int) -> None:
    s3, buffers = S3(hangs=hangs), PartBuffers(2)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(PART_BYTES)
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await upload(s3, buffers).store(endless())
    assert {} == s3.objects
    await all_are_free(buffers, 2)


async def test_a_failed_source_is_reported_as_it_is() -> None:
    s3, buffers = S3(hangs=1), PartBuffers(2)

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(PART_BYTES)
        raise ValueError("wrong digest")

    with pytest.raises(ValueError, match="wrong digest"):
        await upload(s3, buffers).store(broken())
    assert {} == s3.objects
    await all_are_free(buffers, 2)
