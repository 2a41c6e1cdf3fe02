"""Artifacts on real S3."""

from __future__ import annotations

import hashlib
import os

import pytest

from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import object_store
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from tests.support.builders.registry import ModelClient
from tests.support.servers.registry import refused


async def object_sizes(s3_settings: S3Settings) -> dict[str, int]:
    """Return key → size of every object in the bucket."""
    async with object_store(s3_settings) as store:
        return {info.key: info.size async for info in store.list()}


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 20_000_000])
async def test_artifacts_read_back_unchanged(client: ModelClient, size: int) -> None:
    await client.create()
    content = os.urandom(size)
    version = await client.version(content)
    assert version.artifact_state == model_pb2.ARTIFACT_STATE_INVALID, "stored, and no model"
    assert await client.download(version.name) == content


@pytest.mark.parametrize("size", [100, 20_000_000])
async def test_an_upload_with_a_wrong_byte_stores_nothing(
    client: ModelClient, s3_settings: S3Settings, size: int
) -> None:
    await client.create()
    content = os.urandom(size)
    version = await client.version(content, upload=False)
    for wrong in (bytes([content[0] ^ 1]) + content[1:], content[:-1], content + b"x"):
        with refused("DATA_LOSS", "DIGEST_MISMATCH"):
            await client.upload(version.name, wrong)
        assert await object_sizes(s3_settings) == {}
    digest = hashlib.sha256(content).hexdigest()
    await client.upload(version.name, content)
    assert await object_sizes(s3_settings) == {f"registry/sha256/{digest[:2]}/{digest[2:4]}/{digest}": size}
    ready = await client.upload(version.name, content)
    assert ready.artifact_state == model_pb2.ARTIFACT_STATE_INVALID, "stored, and no model"


async def test_corrupt_objects_are_not_served_and_an_upload_repairs_them(
    client: ModelClient, s3_settings: S3Settings
) -> None:
    await client.create()
    content = os.urandom(3_000_000)
    version = await client.version(content)
    (key,) = await object_sizes(s3_settings)
    async with object_store(s3_settings) as store:
        await store.put(key, content[:-1] + bytes([content[-1] ^ 1]))
        with refused("DATA_LOSS", "DIGEST_MISMATCH"):
            await client.download(version.name)
        await store.delete(key)
        with refused("DATA_LOSS", "DIGEST_MISMATCH"):
            await client.download(version.name)
    await client.upload(version.name, content)
    assert await client.download(version.name) == content


async def test_uploads_need_a_declared_name_and_chunks_up_to_a_mebibyte(client: ModelClient) -> None:
    await client.create()
    version = await client.version(bytes(3 << 20), upload=False)
    with refused("FAILED_PRECONDITION", "NOT_DECLARED"):
        await client.upload(version.name, b"x", artifact="other.bin")
    with refused("INVALID_ARGUMENT", "TOO_LARGE"):
        await client.upload(version.name, bytes(3 << 20), chunk=2 << 20)
    with refused("FAILED_PRECONDITION", "ARTIFACTS_PENDING"):
        await client.download(version.name)


async def test_bytes_that_are_no_model_are_shown_rejected_and_deleted(client: ModelClient) -> None:
    await client.create()
    version = await client.version(b"hello")
    assert version.artifact_state == model_pb2.ARTIFACT_STATE_INVALID
    (problem,) = version.check_problems
    assert problem.startswith("The model file cannot be loaded: ")
    with refused("FAILED_PRECONDITION", "INVALID_VERSION"):
        await client.promote(
            version.name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="why not"
        )
    with refused("FAILED_PRECONDITION", "INVALID_VERSION"):
        await client.release(version.name)
    stub = client.stub
    await stub.RejectModelVersion(
        registry_pb2.RejectModelVersionRequest(name=version.name, reason="no model")
    )
    shown = await stub.GetModelVersion(registry_pb2.GetModelVersionRequest(name=version.name))
    assert [problem] == list(shown.model_version.check_problems)
    await stub.DeleteModelVersion(registry_pb2.DeleteModelVersionRequest(name=version.name))
    with refused("NOT_FOUND", "UNKNOWN_MODEL_VERSION"):
        await client.download(version.name)
    following = await client.version()
    assert following.artifact_state == model_pb2.ARTIFACT_STATE_READY
    assert following.name == f"{client.model}/versions/2"
