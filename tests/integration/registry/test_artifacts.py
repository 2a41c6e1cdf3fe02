"""Bytes in and out, on real S3."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest

from flywheel_local.s3 import S3
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from tests.support.builders.registry import ModelClient
from tests.support.servers.registry import refused


async def keys(s3: S3, bucket: str) -> dict[str, int]:
    """Every object of the bucket: key → size."""
    from flywheel_common.config import S3Settings
    from flywheel_common.storage.s3 import object_store

    chosen = S3Settings(
        s3_endpoint=s3.endpoint, s3_access_key=s3.access_key, s3_secret_key=s3.secret_key, s3_bucket=bucket
    )
    async with object_store(chosen) as store:
        return {info.key: info.size async for info in store.list()}


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 20_000_000])
async def test_bytes_come_back_as_they_went_in(client: ModelClient, size: int) -> None:
    await client.create()
    content = os.urandom(size)
    version = await client.version(content)
    assert version.artifact_state == model_pb2.ARTIFACT_STATE_READY
    assert await client.download(version.name) == content


@pytest.mark.parametrize("size", [100, 20_000_000])
async def test_a_wrong_byte_keeps_nothing_and_the_right_bytes_may_follow(
    client: ModelClient, s3: S3, bucket: str, size: int
) -> None:
    await client.create()
    content = os.urandom(size)
    version = await client.version(content, upload=False)
    for wrong in (bytes([content[0] ^ 1]) + content[1:], content[:-1], content + b"x"):
        with refused("DATA_LOSS", "DIGEST_MISMATCH"):
            await client.upload(version.name, wrong)
        assert await keys(s3, bucket) == {}
    digest = hashlib.sha256(content).hexdigest()
    await client.upload(version.name, content)
    assert await keys(s3, bucket) == {f"registry/sha256/{digest[:2]}/{digest[2:4]}/{digest}": size}
    ready = await client.upload(version.name, content)
    assert ready.artifact_state == model_pb2.ARTIFACT_STATE_READY


async def test_corrupt_bytes_in_the_store_are_never_served_whole_and_an_upload_repairs_them(
    client: ModelClient, s3: S3, bucket: str
) -> None:
    from flywheel_common.config import S3Settings
    from flywheel_common.storage.s3 import object_store

    await client.create()
    content = os.urandom(3_000_000)
    version = await client.version(content)
    (key,) = await keys(s3, bucket)
    chosen = S3Settings(
        s3_endpoint=s3.endpoint, s3_access_key=s3.access_key, s3_secret_key=s3.secret_key, s3_bucket=bucket
    )
    async with object_store(chosen) as store:
        await store.put(key, content[:-1] + bytes([content[-1] ^ 1]))
        with refused("DATA_LOSS", "DIGEST_MISMATCH"):
            await client.download(version.name)
        await store.delete(key)
        with refused("DATA_LOSS", "DIGEST_MISMATCH"):
            await client.download(version.name)
    await client.upload(version.name, content)
    assert await client.download(version.name) == content


TRICKS = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\\b",
    "%2e%2e%2fx",
    "a#b",
    "a;b",
    "a b",
    "\u2024\u2024",
    "a\nb",
    "a\0b",
    "s3://b/k",
    "x" * 129,
]


@pytest.mark.parametrize("name", TRICKS)
async def test_path_tricks_in_artifact_names_are_refused(client: ModelClient, name: str) -> None:
    await client.create()
    artifact = model_pb2.Artifact(name=name, size_bytes=1, sha256="a" * 64)
    request = registry_pb2.CreateModelVersionRequest(
        parent=client.model, model_version=model_pb2.ModelVersion(artifacts=[artifact])
    )
    with refused("INVALID_ARGUMENT", "INVALID_TEXT" if "\0" in name else "INVALID_ARTIFACT_NAME"):
        await client.stub.CreateModelVersion(request)
    version = await client.version()
    with refused("INVALID_ARGUMENT", "INVALID_ARTIFACT_NAME"):
        await client.upload(version.name, b"x", artifact=name)
    with refused("INVALID_ARGUMENT", "INVALID_ARTIFACT_NAME"):
        await client.download(version.name, artifact=name)


async def test_only_declared_files_are_taken_in_chunks_of_at_most_a_mebibyte(client: ModelClient) -> None:
    await client.create()
    version = await client.version(bytes(3 << 20), upload=False)
    with refused("FAILED_PRECONDITION", "NOT_DECLARED"):
        await client.upload(version.name, b"x", artifact="other.bin")
    with refused("INVALID_ARGUMENT", "TOO_LARGE"):
        await client.upload(version.name, bytes(3 << 20), chunk=2 << 20)
    with refused("FAILED_PRECONDITION", "ARTIFACTS_PENDING"):
        await client.download(version.name)

    def headless() -> Any:
        yield registry_pb2.UploadArtifactRequest(data=b"x")

    with refused("INVALID_ARGUMENT", "TARGET_MISSING"):
        await client.stub.UploadArtifact(headless())
