"""Contract tests for object stores: in memory and on S3."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from flywheel_common import errors
from flywheel_common.config import S3Settings
from flywheel_common.deadline import budget, left_seconds
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.storage.objects import ObjectStore, content_key, put_content
from flywheel_common.storage.part_buffers import PART_BYTES, PartBuffers
from flywheel_common.storage.s3 import S3ObjectStore, object_store, s3_client
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.ports import free_port


@pytest.fixture(params=["memory", "s3"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryObjectStore()
        return
    async with object_store(s3_settings(request), prefix="below/") as opened:
        await opened.ensure_bucket()
        await opened.ensure_bucket()
        yield opened


def s3_settings(request: pytest.FixtureRequest, **changes: Any) -> S3Settings:
    server, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    values = {
        "s3_endpoint": server.endpoint,
        "s3_access_key": server.access_key,
        "s3_secret_key": server.secret_key,
        "s3_bucket": bucket,
    }
    return S3Settings(**{**values, **changes})


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


async def test_get_returns_what_was_put(store: ObjectStore) -> None:
    digest = await store.put("a/b", b"hello")
    assert await store.get("a/b") == b"hello"
    assert (digest.size, digest.sha256) == (5, hashlib.sha256(b"hello").hexdigest())


async def test_the_last_put_wins(store: ObjectStore) -> None:
    await store.put("a", b"one")
    await store.put("a", b"two")
    assert await store.get("a") == b"two"


async def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    await store.put("empty", b"")
    assert await store.get("empty") == b""
    assert [c async for c in store.stream("empty")] == []
    info = await store.head("empty")
    assert info is not None
    assert info.size == 0


@pytest.mark.parametrize("start", [0, 1, 999_999, 1_500_000, 2_000_000, 3_000_000])
async def test_a_stream_begins_at_any_byte(store: ObjectStore, start: int) -> None:
    data = os.urandom(2_000_000)
    await store.put("long", data)
    parts = [chunk async for chunk in store.stream("long", 700_000, start)]
    assert data[start:] == b"".join(parts)
    assert all(len(part) <= 700_000 for part in parts)


async def test_a_missing_object_is_not_found(store: ObjectStore) -> None:
    for read in (store.get("nope"), store.stream("nope").__anext__()):
        with pytest.raises(errors.NotFound) as caught:
            await read
        assert caught.value.reason == "OBJECT_NOT_FOUND"
    assert await store.head("nope") is None
    await store.delete("nope")


@pytest.mark.parametrize("buffers", [None, PartBuffers(1), PartBuffers(3)])
async def test_a_stream_of_several_parts_is_stored(store: ObjectStore, buffers: PartBuffers | None) -> None:
    data = os.urandom(2 * PART_BYTES + 12_345)
    pieces = [data[i : i + 700_001] for i in range(0, len(data), 700_001)]
    assert len(data) == await store.put_stream("big", chunks(*pieces), buffers)
    back = [c async for c in store.stream("big", 1_000_000)]
    assert b"".join(back) == data
    assert max(map(len, back)) <= 1_000_000


async def test_a_failed_stream_stores_nothing(store: ObjectStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (PART_BYTES + 1)
        raise RuntimeError("client disconnected")

    with pytest.raises(RuntimeError, match="disconnected"):
        await store.put_stream("broken", broken())
    assert await store.head("broken") is None
    assert await keys(store) == []


async def test_failed_and_cancelled_streams_give_their_buffers_back(store: ObjectStore) -> None:
    buffers = PartBuffers(2)

    async def broken() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * PART_BYTES
        raise RuntimeError("client disconnected")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * PART_BYTES
            await asyncio.sleep(0)

    for _ in range(3):
        with pytest.raises(RuntimeError, match="disconnected"):
            await store.put_stream("broken", broken(), buffers)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await store.put_stream("cancelled", endless(), buffers)
    many = [store.put_stream(f"k{i}", chunks(*[bytes([i]) * PART_BYTES] * 2), buffers) for i in range(5)]
    async with asyncio.timeout(30):
        assert [2 * PART_BYTES] * 5 == await asyncio.gather(*many)
    for i in range(5):
        assert bytes([i]) * 2 * PART_BYTES == await store.get(f"k{i}")
    assert await store.head("broken") is None


async def test_listing_is_by_prefix_in_key_order(store: ObjectStore) -> None:
    for key in ("b/2", "a/1", "b/1", "c"):
        await store.put(key, b"x")
    assert await keys(store) == ["a/1", "b/1", "b/2", "c"]
    assert await keys(store, "b/") == ["b/1", "b/2"]
    assert await keys(store, "nope/") == []


async def test_copy_and_delete(store: ObjectStore) -> None:
    await store.put("a", b"x")
    await store.copy("a", "b/c")
    await store.delete("a")
    assert await keys(store) == ["b/c"]
    assert await store.get("b/c") == b"x"
    with pytest.raises(errors.NotFound):
        await store.copy("a", "d")


async def test_content_is_stored_under_its_digest(store: ObjectStore) -> None:
    sha = hashlib.sha256(b"weights").hexdigest()
    for _ in range(2):
        key, digest = await put_content(store, b"weights", prefix="models/")
        assert (key, digest.sha256) == (f"models/sha256/{sha[:2]}/{sha[2:4]}/{sha}", sha)
    assert await keys(store) == [f"models/{content_key(sha)}"]


@pytest.mark.parametrize(
    "key", ["", "/a", "a//b", "../a", "a/../b", "a/.", "a/", "x" * 1000, "ä" * 128, "a\0b"]
)
async def test_invalid_keys_are_refused(store: ObjectStore, key: str) -> None:
    for act in (store.put(key, b"x"), store.get(key), store.head(key), store.delete(key)):
        with pytest.raises(errors.InvalidArgument) as caught:
            await act
        assert caught.value.reason == "INVALID_OBJECT_KEY"


async def test_a_store_that_is_down_is_unavailable(request: pytest.FixtureRequest) -> None:
    async with object_store(s3_settings(request, s3_endpoint=f"http://127.0.0.1:{free_port()}")) as down:
        with pytest.raises(errors.Unavailable) as caught:
            await down.get("a")
    assert caught.value.reason == "S3_UNAVAILABLE"


@dataclass
class FaultyS3:
    """An S3 store behind a proxy that injects faults."""

    store: S3ObjectStore
    proxy: FaultProxy
    client: Any
    """A client of the same bucket that does not use the proxy."""

    async def uploads(self) -> int:
        """The number of multipart uploads that are not complete."""
        found = await self.client.list_multipart_uploads(Bucket=self.store._bucket)
        return len(found.get("Uploads", ()))


@pytest.fixture
async def faulty(request: pytest.FixtureRequest) -> AsyncIterator[FaultyS3]:
    """S3 behind a proxy that can cut and stall connections; contains the keys "a" and "b"."""
    settings = s3_settings(request)
    address = urlsplit(settings.s3_endpoint)
    assert address.hostname is not None and address.port is not None
    async with FaultProxy(address.hostname, address.port) as proxy, s3_client(settings) as client:
        through = s3_settings(request, s3_endpoint=f"http://{proxy.address}")
        async with object_store(through) as store:
            await store.ensure_bucket()
            await store.put("a", b"first")
            await store.put("b", b"x" * 40_000_000)
            yield FaultyS3(store, proxy, client)
            proxy.heal()


async def assert_unavailable_in_time(call: Callable[[], Awaitable[object]]) -> None:
    """The call fails with S3_UNAVAILABLE before its deadline."""
    with budget(1.0):
        with pytest.raises(errors.Unavailable) as caught:
            await call()
        left = left_seconds()
    assert "S3_UNAVAILABLE" == caught.value.reason
    assert left is not None and left > 0


@pytest.mark.parametrize("fault", ["stall", "cut"])
async def test_s3_that_hangs_or_is_down_is_unavailable_before_the_deadline(
    faulty: FaultyS3, fault: str
) -> None:
    store = faulty.store
    getattr(faulty.proxy, fault)()
    for call in (
        store.ensure_bucket,
        lambda: store.put("c", b"x"),
        lambda: store.put_stream("d", chunks(b"x")),
        lambda: store.put_stream("e", chunks(b"x" * PART_BYTES, b"x")),
        lambda: store.get("a"),
        lambda: anext(store.stream("a")),
        lambda: store.head("a"),
        lambda: anext(store.list()),
        lambda: store.delete("f"),
        lambda: store.copy("a", "g"),
    ):
        await assert_unavailable_in_time(call)
    faulty.proxy.heal()
    with budget(10.0):
        assert await store.get("a") == b"first"


async def test_a_transfer_that_hangs_is_unavailable_and_leaves_no_parts(
    faulty: FaultyS3,
) -> None:
    download = faulty.store.stream("b", 1_000_000)

    async def hanging() -> AsyncIterator[bytes]:
        yield b"x" * PART_BYTES
        assert 1 == await faulty.uploads()
        # Last, or the socket buffers (33 MB here) receive the whole object before the stall.
        assert await anext(download)
        faulty.proxy.stall()
        yield b"x" * PART_BYTES

    await assert_unavailable_in_time(lambda: faulty.store.put_stream("c", hanging()))

    async def rest() -> None:
        async for _ in download:
            pass

    await assert_unavailable_in_time(rest)
    faulty.proxy.heal()

    async def no_uploads() -> bool:
        return await faulty.uploads() == 0

    await eventually(no_uploads, within=20)
    with budget(10.0):
        assert await faulty.store.head("c") is None
        assert 1 == await faulty.store.put_stream("c", chunks(b"x"))


async def test_a_wrong_secret_key_is_refused(request: pytest.FixtureRequest) -> None:
    async with object_store(s3_settings(request, s3_secret_key="wrong-secret")) as refused:
        with pytest.raises(errors.FailedPrecondition) as caught:
            await refused.get("a")
    assert caught.value.reason == "S3_REFUSED"
    assert isinstance(refused, S3ObjectStore)


async def test_pyarrow_and_the_store_read_each_others_objects(request: pytest.FixtureRequest) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from flywheel_common.storage.s3 import arrow_filesystem

    settings = s3_settings(request)
    table = pa.table({"x": [1, 2, 3]})
    async with object_store(settings) as store:
        await store.ensure_bucket()
        filesystem = arrow_filesystem(settings)
        pq.write_table(table, f"{settings.s3_bucket}/t/a.parquet", filesystem=filesystem)
        await store.put("t/b.parquet", await store.get("t/a.parquet"))
    assert pq.read_table(f"{settings.s3_bucket}/t/b.parquet", filesystem=filesystem).equals(table)


async def test_a_bucket_can_be_created_concurrently(request: pytest.FixtureRequest) -> None:
    settings = s3_settings(request)
    settings = s3_settings(request, s3_bucket=f"{settings.s3_bucket}-new")
    async with object_store(settings) as opened:
        await asyncio.gather(*(opened.ensure_bucket() for _ in range(16)))
        await opened.put("a", b"1")
        assert await opened.get("a") == b"1"
