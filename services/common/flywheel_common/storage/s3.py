"""An object store on S3 (aiobotocore), with path-style addresses and checksums only where required."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError

from flywheel_common.config import S3Settings
from flywheel_common.deadline import in_time
from flywheel_common.errors import FlywheelError
from flywheel_common.storage.errors import S3Refused, S3Unavailable
from flywheel_common.storage.objects import (
    CHUNK_BYTES,
    Digest,
    ObjectInfo,
    check_key,
    object_not_found,
)
from flywheel_common.storage.part_buffers import PartBuffers
from flywheel_common.storage.s3_multipart import MultipartUpload
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)

CLEAN_UP_SECONDS = 60.0
"""Timeout for removing the parts of a failed upload."""
CLOSE_SECONDS = 2.0
"""How long `close` waits for these removals."""
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_PAST_THE_END = {"InvalidRange", "416"}

# A session parses botocore's description of S3 for its first client, which takes a tenth of a second.
# It holds no credentials.
_session = functools.cache(get_session)


@asynccontextmanager
async def s3_client(settings: S3Settings, *, max_connections: int = 32) -> AsyncIterator[Any]:
    """An aiobotocore S3 client, closed at the end."""
    config = AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 4, "mode": "standard"},
        connect_timeout=3,
        read_timeout=30,
        max_pool_connections=max_connections,
    )
    async with _session().create_client(
        "s3",
        region_name=settings.s3_region,
        endpoint_url=settings.s3_endpoint,
        aws_access_key_id=settings.s3_access_key.get_secret_value(),
        aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
        config=config,
    ) as client:
        yield client


@asynccontextmanager
async def object_store(settings: S3Settings, *, prefix: str = "") -> AsyncIterator[S3ObjectStore]:
    """The object store of a service, closed at the end."""
    async with s3_client(settings) as client:
        store = S3ObjectStore(client, settings.s3_bucket, prefix)
        try:
            yield store
        finally:
            await store.close()


class S3ObjectStore:
    """An `ObjectStore` in a bucket; keys are below `prefix`."""

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._removing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Ends background removals; the client stays open."""
        if self._removing:
            await asyncio.wait(self._removing, timeout=CLOSE_SECONDS)
        for task in self._removing:
            task.cancel()
        await asyncio.gather(*self._removing, return_exceptions=True)

    async def ensure_bucket(self) -> None:
        """Creates the bucket if it does not exist."""
        async with _request(self._bucket):
            try:
                await self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if _code(error) not in {*_ABSENT, "NoSuchBucket"}:
                    raise
                await self._create_bucket()

    async def _create_bucket(self) -> None:
        try:
            await self._client.create_bucket(Bucket=self._bucket)
        except ClientError as error:
            # Another process created it first.
            if _code(error) not in {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}:
                raise

    async def put(self, key: str, data: bytes) -> Digest:
        async with _request(key):
            await self._client.put_object(Bucket=self._bucket, Key=self._at(key), Body=data)
        return Digest(len(data), hashlib.sha256(data).hexdigest())

    async def put_stream(
        self, key: str, chunks: AsyncIterable[bytes], buffers: PartBuffers | None = None
    ) -> int:
        where = {"Bucket": self._bucket, "Key": self._at(key)}
        sent = MultipartUpload(self._client, where, lambda: _request(key), buffers or PartBuffers(1))
        try:
            return await sent.store(chunks)
        except BaseException:
            if sent.upload is not None:
                self._remove_later(key, {**where, "UploadId": sent.upload})
            raise

    async def get(self, key: str) -> bytes:
        async with _request(key):
            answer = await self._client.get_object(Bucket=self._bucket, Key=self._at(key))
            async with answer["Body"] as body:
                data: bytes = await body.read()
        return data

    async def stream(self, key: str, chunk_bytes: int = CHUNK_BYTES, start: int = 0) -> AsyncIterator[bytes]:
        part = {"Range": f"bytes={start}-"} if start else {}
        async with _request(key):
            try:
                answer = await self._client.get_object(Bucket=self._bucket, Key=self._at(key), **part)
            except ClientError as error:
                if _code(error) in _PAST_THE_END:
                    return
                raise
        async with answer["Body"] as body:
            while True:
                async with _request(key):
                    chunk = await body.read(chunk_bytes)
                if not chunk:
                    return
                # Not kept while its reader works.
                taking, chunk = [chunk], b""
                yield taking.pop()

    async def head(self, key: str) -> ObjectInfo | None:
        async with _request(key):
            try:
                answer = await self._client.head_object(Bucket=self._bucket, Key=self._at(key))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise
        return ObjectInfo(key, answer["ContentLength"], answer["LastModified"])

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        token: str | None = None
        while True:
            async with _request(prefix):
                more = {"ContinuationToken": token} if token else {}
                page = await self._client.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._prefix + prefix, **more
                )
            for item in page.get("Contents", ()):
                yield ObjectInfo(item["Key"].removeprefix(self._prefix), item["Size"], item["LastModified"])
            if not page.get("IsTruncated"):
                return
            token = page["NextContinuationToken"]

    async def delete(self, key: str) -> None:
        async with _request(key):
            try:
                await self._client.delete_object(Bucket=self._bucket, Key=self._at(key))
            except ClientError as error:
                if _code(error) not in _ABSENT:
                    raise

    async def copy(self, source: str, target: str) -> None:
        async with _request(source):
            await self._client.copy_object(
                Bucket=self._bucket,
                Key=self._at(target),
                CopySource={"Bucket": self._bucket, "Key": self._at(source)},
            )

    def _remove_later(self, key: str, upload: dict[str, str]) -> None:
        """Removes the parts in the background: the store may be the reason why the upload failed."""
        task = asyncio.create_task(self._remove(key, upload), name="s3 clean-up")
        self._removing.add(task)
        task.add_done_callback(self._removing.discard)

    async def _remove(self, key: str, upload: dict[str, str]) -> None:
        try:
            with _s3_errors(key):
                async with asyncio.timeout(CLEAN_UP_SECONDS):
                    await self._client.abort_multipart_upload(**upload)
        except FlywheelError as error:
            log.warning("parts of a failed upload are left", key=key, reason=error.reason)

    def _at(self, key: str) -> str:
        return self._prefix + check_key(key)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@asynccontextmanager
async def _request(key: str) -> AsyncIterator[None]:
    """Maps errors of one S3 request. If S3 hangs, raises S3Unavailable before the deadline of the running
    call."""
    async with in_time(_unavailable):
        with _s3_errors(key):
            yield


@contextmanager
def _s3_errors(key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in _ABSENT:
            raise object_not_found(key) from None
        if code in {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "403"}:
            raise S3Refused(f"S3 refuses ({code}): check the bucket and the access key.", code=code) from None
        raise _unavailable(code=code) from error
    except (BotoCoreError, aiohttp.ClientError, OSError, TimeoutError) as error:
        raise _unavailable() from error


def _unavailable(**metadata: str) -> S3Unavailable:
    return S3Unavailable("The object store does not answer now: try again.", **metadata)


def arrow_filesystem(settings: S3Settings) -> Any:
    """A pyarrow S3FileSystem. Requires AWS_REQUEST_CHECKSUM_CALCULATION=WHEN_REQUIRED in the environment at
    process start; write datasets with create_dir=False."""
    from pyarrow import fs

    scheme, _, host = settings.s3_endpoint.partition("://")
    return fs.S3FileSystem(
        access_key=settings.s3_access_key.get_secret_value(),
        secret_key=settings.s3_secret_key.get_secret_value(),
        endpoint_override=host,
        scheme=scheme,
        region=settings.s3_region,
        allow_bucket_creation=False,
        connect_timeout=3,
        request_timeout=60,
    )
