"""Uploads in parts, ranges and collection on real S3 and PostgreSQL."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

import flywheel as fw
from flywheel import artifact_calls
from flywheel_common.clock import ManualClock
from flywheel_common.config import S3Settings
from flywheel_common.grpc.channel import from_rpc_error
from flywheel_common.postgres.pool import create_pool
from flywheel_common.storage.s3 import object_store
from flywheel_local.platform import serves
from flywheel_protos.registry.v1 import artifact_pb2, model_pb2, registry_pb2
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.collection.collection import ArtifactCollection
from flywheel_registry.config import RegistrySettings
from flywheel_registry.store.postgres.store import PostgresStore
from tests.support.builders.registry import ModelClient
from tests.support.eventually import eventually
from tests.support.ports import free_port
from tests.support.servers.registry import NO_TICKS, refused, running_registry
from tests.support.servers.registry_process import environment, process

MIB = 1 << 20
UPLOAD_MIB = int(os.environ.get("FLYWHEEL_SOAK_UPLOAD_MIB", "80"))
"""Size of the interrupted upload, less 3 bytes; 4096 is the largest artifact (`make soak SUITE=registry`)."""
MEMORY_MIB = 150
OBJECTS, RACING = 10_500, 32


class Killed(Exception):
    """Ends the client in the middle of an upload."""


def random_file(path: Path, size: int) -> str:
    """Write random bytes and return their SHA-256."""
    sha = hashlib.sha256()
    with path.open("wb") as file:
        while left := size - file.tell():
            data = os.urandom(min(16 * MIB, left))
            sha.update(data)
            file.write(data)
    return sha.hexdigest()


def largest_resident(pid: int) -> float:
    """Return the largest resident memory that the process has had, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.slow
@pytest.mark.timeout(180 + UPLOAD_MIB // 4)
async def test_an_upload_killed_at_90_percent_sends_a_tenth_again(
    settings: Callable[..., RegistrySettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = UPLOAD_MIB * MIB - 3
    file, back = tmp_path / "weights.bin", tmp_path / "back"
    sha256 = await asyncio.to_thread(random_file, file, size)
    sent: list[int] = []
    stored: list[int] = []
    whole = artifact_calls.ArtifactCalls._send_part

    async def counted(self: Any, *arguments: Any) -> None:
        sent.append(len(arguments[-1]))
        await whole(self, *arguments)
        stored.append(len(arguments[-1]))
        if limit and sum(stored) >= limit:
            raise Killed

    monkeypatch.setattr(artifact_calls, "STREAMED_BYTES", 0)
    monkeypatch.setattr(artifact_calls.ArtifactCalls, "_send_part", counted)
    address = f"127.0.0.1:{free_port()}"
    env = environment(settings(listen=address, log_rpcs=False))
    with process(env, tmp_path / "log") as running:
        async with fw.Client(registry=address) as sdk:
            client = ModelClient(sdk.registry)
            await eventually(lambda: asyncio.to_thread(serves, address), within=60, every=0.2)
            await client.create()
            declared = model_pb2.ModelVersion()
            declared.artifacts.add(name="weights.bin", size_bytes=size, sha256=sha256)
            # It is never sent, so that nothing is checked.
            declared.artifacts.add(name="model.onnx", size_bytes=1, sha256="ab" * 32)
            request = registry_pb2.CreateModelVersionRequest(parent=client.model, model_version=declared)
            version = (await sdk.registry.CreateModelVersion(request)).model_version.name
            limit = size * 9 // 10
            # The process ends: no part is finished in an orderly way.
            with pytest.raises(ExceptionGroup):
                await sdk.upload_artifact(version, "weights.bin", file)
            limit, first, done = 0, sum(sent), sum(stored)
            sent.clear()
            await sdk.upload_artifact(version, "weights.bin", file)
            again = sum(sent)
            assert 0.9 * size <= done
            assert again <= size - done <= 0.1 * size, "what the registry has acknowledged is not sent again"
            assert first + again <= size + 4 * 4 * MIB, "nothing is lost but the parts on their way"
            peak = largest_resident(running.pid)
            part = registry_pb2.DownloadArtifactRequest(
                model_version=version, artifact="weights.bin", offset=60 * MIB - 5, length=10
            )
            read = b"".join([message.data async for message in sdk.registry.DownloadArtifact(part)])
            await sdk.download_artifact(version, "weights.bin", back)
    with file.open("rb") as content:
        content.seek(60 * MIB - 5)
        assert content.read(10) == read
    with back.open("rb") as content:
        assert sha256 == hashlib.file_digest(content, "sha256").hexdigest()
    print(
        f"{UPLOAD_MIB} MiB: {done / size:.1%} of {first / size:.1%} stored, {again / size:.1%} sent again, "
        f"peak {peak:.0f} MiB"
    )
    assert peak <= MEMORY_MIB


async def test_slow_uploads_do_not_keep_others_from_theirs(settings: Callable[..., RegistrySettings]) -> None:
    async with running_registry(settings(**NO_TICKS, upload_part_seconds=1.0)) as stub:
        client = ModelClient(stub)
        await client.create()
        content = os.urandom(12 * MIB)
        slow = [(await client.version(os.urandom(12 * MIB), upload=False)).name for _ in range(2)]
        fast = (await client.version(content, upload=False)).name
        stop = asyncio.Event()

        async def trickle(version: str) -> AsyncIterator[registry_pb2.UploadArtifactRequest]:
            target = registry_pb2.UploadArtifactRequest.Target(model_version=version, artifact="model.onnx")
            yield registry_pb2.UploadArtifactRequest(target=target)
            while not stop.is_set():
                yield registry_pb2.UploadArtifactRequest(data=b"x")
                await asyncio.sleep(0.2)

        calls = [asyncio.ensure_future(stub.UploadArtifact(trickle(name), timeout=60)) for name in slow]
        await asyncio.sleep(0.5)
        await client.upload(fast, content, timeout=30)
        assert content == await client.download(fast)
        stop.set()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        reasons = {from_rpc_error(error).reason for error in ended if isinstance(error, grpc.RpcError)}
        assert "STREAM_TOO_SLOW" in reasons


@pytest.mark.timeout(150)
async def test_more_joins_than_connections_end(client: ModelClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each join reads from and writes to the object store, whose client has 32 connections."""
    monkeypatch.setattr(artifact_calls, "STREAMED_BYTES", 0)
    await client.create()
    contents = [os.urandom(6 * MIB) for _ in range(40)]
    async with fw.Client(registry=client.stub.address) as sdk:

        async def upload(content: bytes) -> str:
            declared = model_pb2.ModelVersion()
            sha256 = hashlib.sha256(content).hexdigest()
            declared.artifacts.add(name="weights.bin", size_bytes=len(content), sha256=sha256)
            declared.artifacts.add(name="model.onnx", size_bytes=1, sha256="ab" * 32)
            request = registry_pb2.CreateModelVersionRequest(parent=client.model, model_version=declared)
            version = (await sdk.registry.CreateModelVersion(request)).model_version.name
            await sdk.upload_artifact(version, "weights.bin", content)
            return str(version)

        async with asyncio.timeout(120):
            names = await asyncio.gather(*map(upload, contents))
    for name, content in list(zip(names, contents, strict=True))[::13]:
        assert content == await client.download(name, "weights.bin")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_collection_of_10500_objects_loses_nothing_that_is_referenced(
    client: ModelClient, s3_settings: S3Settings, database: str
) -> None:
    await client.create()
    kept = {(await client.version(content)).name: content for content in map(os.urandom, [10] * 3)}
    deleted = (await client.version(b"deleted")).name
    await client.stub.DeleteModelVersion(registry_pb2.DeleteModelVersionRequest(name=deleted))
    # More keys below one prefix than a page of S3 has, and contents that are uploaded during the collection.
    digests = [f"00{i:062x}" for i in range(1100)] + [f"{i % 256:02x}{i:062x}" for i in range(2000, 11_364)]
    racing = [os.urandom(20) for _ in range(RACING)]
    digests += [hashlib.sha256(content).hexdigest() for content in racing]
    assert OBJECTS == len(set(digests)) + 4
    async with object_store(s3_settings, prefix="registry/") as store, create_pool(database) as pool:

        async def put(digest: str) -> None:
            await store.put(f"sha256/{digest[:2]}/{digest[2:4]}/{digest}", b"x")

        for start in range(0, len(digests), 50):
            await asyncio.gather(*map(put, digests[start : start + 50]))
        clock = ManualClock(datetime.now(UTC))
        collection = ArtifactCollection(PostgresStore(pool, to_event), store, clock)

        async def collect(*, dry_run: bool) -> tuple[int, int, int]:
            objects = examined = purged = 0
            shard: int | None = 0
            while shard is not None:
                done = await collection.step(shard, timedelta(days=1), dry_run=dry_run)
                examined += done.examined
                objects += done.objects
                purged += done.purged_versions
                shard = done.next_shard
            return examined, objects, purged

        async def upload(content: bytes) -> str:
            name = (await client.version(content, upload=False)).name
            await asyncio.sleep(random.Random(content).uniform(0.0, 3.0))
            while True:
                try:
                    await client.upload(name, content, timeout=60)
                    return name
                except grpc.RpcError as error:
                    # The collection deleted the bytes between their upload and their claim.
                    if from_rpc_error(error).reason != "ARTIFACT_COLLECTED":
                        raise

        assert (OBJECTS, 0, 0) == await collect(dry_run=False), "younger than the grace period"
        clock.advance(2 * 86_400)
        assert (OBJECTS, OBJECTS - 4, 1) == await collect(dry_run=True)
        assert OBJECTS == len([info async for info in store.list()])
        async with asyncio.TaskGroup() as group:
            uploads = [group.create_task(upload(content)) for content in racing]
            collecting = group.create_task(collect(dry_run=False))
        assert OBJECTS - 3 - RACING <= collecting.result()[1] <= OBJECTS - 3
        kept |= {task.result(): content for task, content in zip(uploads, racing, strict=True)}
        await collect(dry_run=False)
        left = {info.key.rpartition("/")[2] async for info in store.list()}
        assert {hashlib.sha256(content).hexdigest() for content in kept.values()} == left
    for name, content in kept.items():
        assert content == await client.download(name)
    with refused("NOT_FOUND", "NOT_RESTORABLE"):
        await client.stub.RestoreModelVersion(artifact_pb2.RestoreModelVersionRequest(name=deleted))


async def test_an_upload_that_races_a_collection_is_kept_or_refused(
    client: ModelClient, s3_settings: S3Settings, database: str
) -> None:
    await client.create()
    content = os.urandom(1000)
    digest = hashlib.sha256(content).hexdigest()
    version = (await client.version(content, upload=False)).name
    connection = await asyncpg.connect(database)
    async with object_store(s3_settings, prefix="registry/") as store:
        # The collection has decided to delete these bytes and holds the lock of their digest.
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 11))", digest)
        upload = asyncio.create_task(client.upload(version, content))
        key = f"sha256/{digest[:2]}/{digest[2:4]}/{digest}"
        async with asyncio.timeout(10):
            while await store.head(key) is None:
                await asyncio.sleep(0.02)
        await store.delete(key)
        await transaction.commit()
        with refused("ABORTED", "ARTIFACT_COLLECTED"):
            await upload
    await connection.close()
    await client.upload(version, content)
    assert content == await client.download(version)
