"""Uploads in parts, ranges and collection on real S3 and PostgreSQL."""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import flywheel as fw
from flywheel import artifact_calls
from flywheel_common.clock import ManualClock
from flywheel_common.config import S3Settings
from flywheel_common.postgres.pool import create_pool
from flywheel_common.storage.s3 import object_store
from flywheel_protos.registry.v1 import artifact_pb2, registry_pb2
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.collection.collection import ArtifactCollection
from flywheel_registry.store.postgres.store import PostgresStore
from tests.support.builders.registry import ModelClient
from tests.support.servers.registry import refused

MIB = 1 << 20


class Killed(Exception):
    """Ends the client in the middle of an upload."""


async def test_an_upload_killed_at_90_percent_sends_a_tenth_again(
    client: ModelClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.create()
    content = os.urandom(80 * MIB + 3)
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    version = (await client.version(content, upload=False)).name
    sent: list[int] = []
    whole = artifact_calls.ArtifactCalls._send_part

    async def counted(self: Any, *arguments: Any) -> None:
        if limit and sum(sent) >= limit:
            raise Killed
        sent.append(len(arguments[-1]))
        await whole(self, *arguments)

    monkeypatch.setattr(artifact_calls.ArtifactCalls, "_send_part", counted)
    async with fw.Client(registry=client.stub.address) as sdk:
        limit = len(content) * 9 // 10
        # The process ends: no part is finished in an orderly way.
        with pytest.raises(ExceptionGroup):
            await sdk.upload_artifact(version, "model.onnx", file)
        limit, first = 0, sum(sent)
        sent.clear()
        await sdk.upload_artifact(version, "model.onnx", file)
        assert 0.9 * len(content) <= first
        assert sum(sent) <= 0.1 * len(content) + 4 * 4 * MIB
        await sdk.download_artifact(version, "model.onnx", tmp_path / "back")
    assert hashlib.sha256(content).digest() == hashlib.sha256((tmp_path / "back").read_bytes()).digest()
    request = registry_pb2.DownloadArtifactRequest(
        model_version=version, artifact="model.onnx", offset=60 * MIB - 5, length=10
    )
    read = b"".join([part.data async for part in client.stub.DownloadArtifact(request)])
    assert content[60 * MIB - 5 : 60 * MIB + 5] == read


async def test_a_collection_over_pages_loses_nothing_that_is_referenced(
    client: ModelClient, s3_settings: S3Settings, database: str
) -> None:
    await client.create()
    kept = [(await client.version(os.urandom(10))).name for _ in range(3)]
    deleted = (await client.version(b"deleted")).name
    await client.stub.DeleteModelVersion(registry_pb2.DeleteModelVersionRequest(name=deleted))
    # More keys below one prefix than a page of S3 has.
    digests = [f"00{i:062x}" for i in range(1100)] + [f"ff{i:062x}" for i in range(10)]
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

        assert (1114, 0, 0) == await collect(dry_run=False), "younger than the grace period"
        clock.advance(2 * 86_400)
        assert (1114, 1110, 1) == await collect(dry_run=True)
        assert 1114 == len([info async for info in store.list()])
        assert (1114, 1111, 1) == await collect(dry_run=False)
        assert 3 == len([info async for info in store.list()])
    for name in kept:
        assert 10 == len(await client.download(name))
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
