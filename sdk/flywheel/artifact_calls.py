"""Calls about files of model versions: uploads that go on where they broke off, downloads, collection."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from flywheel.errors import FlywheelError
from flywheel.version_references import VersionReferences
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.tasks import TaskGroup
from flywheel_protos.registry.v1 import artifact_pb2, model_pb2, registry_pb2

CHUNK_BYTES = 1024 * 1024
UPLOAD_SECONDS = 600.0
PART_SECONDS = 60.0
STREAMED_BYTES = 128 * 1024 * 1024
"""Files up to this size are sent as one stream, which is faster; larger ones in parts, which go on after an
error. The slowest caller that the registry allows, 256 KiB/s, sends as much within UPLOAD_SECONDS."""
PARTS_AT_ONCE = 4
TRIES = 3
"""How often a part, or the rest of a download, is tried in one call."""


@dataclass(frozen=True)
class Collected:
    """What a collection has done, or with a dry run would do."""

    examined: int = 0
    objects: int = 0
    bytes: int = 0
    purged_versions: int = 0


class ArtifactCalls(VersionReferences):
    """Calls of the registry about files. A version is given by its full name."""

    async def upload_artifact(
        self, version: str, artifact: str, content: bytes | Path
    ) -> model_pb2.ModelVersion:
        """Uploads a declared file; the last file's upload also checks the version.

        A file above STREAMED_BYTES is sent in parts: after an error the same call sends the missing ones.
        """
        size = await asyncio.to_thread(_size, content)
        if size <= STREAMED_BYTES:
            return await self._upload_whole(version, artifact, content, size)
        request = artifact_pb2.GetArtifactUploadRequest(model_version=version, artifact=artifact)
        upload = (await self.registry.GetArtifactUpload(request)).upload
        known, slots = {part.number: part.sha256 for part in upload.parts}, asyncio.Semaphore(PARTS_AT_ONCE)

        async def send(number: int) -> None:
            async with slots:
                data = await asyncio.to_thread(_part, content, number * upload.part_bytes, upload.part_bytes)
                sha256 = hashlib.sha256(data).hexdigest()
                if known.get(number) != sha256:
                    await self._send_part(version, artifact, number, sha256, data)

        if not upload.stored:
            try:
                async with TaskGroup() as group:
                    for number in range(upload.part_count):
                        group.create_task(send(number))
            except* FlywheelError as errors:
                raise errors.exceptions[0] from None
        done = artifact_pb2.CompleteArtifactUploadRequest(model_version=version, artifact=artifact)
        return (await self.registry.CompleteArtifactUpload(done, timeout=UPLOAD_SECONDS)).model_version

    async def _upload_whole(
        self, version: str, artifact: str, content: bytes | Path, size: int
    ) -> model_pb2.ModelVersion:
        async def messages() -> AsyncIterator[registry_pb2.UploadArtifactRequest]:
            target = registry_pb2.UploadArtifactRequest.Target(model_version=version, artifact=artifact)
            yield registry_pb2.UploadArtifactRequest(target=target)
            for start in range(0, size, CHUNK_BYTES):
                chunk = await asyncio.to_thread(_part, content, start, CHUNK_BYTES)
                yield registry_pb2.UploadArtifactRequest(data=chunk)

        return (await self.registry.UploadArtifact(messages(), timeout=UPLOAD_SECONDS)).model_version

    async def _send_part(self, version: str, artifact: str, number: int, sha256: str, data: bytes) -> None:
        target = artifact_pb2.UploadArtifactPartRequest.Target(
            model_version=version, artifact=artifact, number=number, sha256=sha256
        )

        async def messages() -> AsyncIterator[artifact_pb2.UploadArtifactPartRequest]:
            yield artifact_pb2.UploadArtifactPartRequest(target=target)
            for chunk in _chunks(data):
                yield artifact_pb2.UploadArtifactPartRequest(data=chunk)

        for left in reversed(range(TRIES)):
            try:
                await self.registry.UploadArtifactPart(messages(), timeout=PART_SECONDS)
                return
            except FlywheelError as error:
                if not (left and error.retryable):
                    raise

    async def download_artifact(self, version: str, artifact: str, to: Path) -> Path:
        """Downloads a file of a version to the path `to` and checks its digest.

        A connection that breaks is opened again where it was. Raises ValueError when the bytes differ.
        """
        version = await self.resolve_version(version)
        request = registry_pb2.GetModelVersionRequest(name=version)
        found = (await self.registry.GetModelVersion(request)).model_version
        declared = next((a for a in found.artifacts if a.name == artifact), None)
        if declared is None:
            raise ValueError(f"{version} has no file {artifact!r}.")
        sha, at, left = hashlib.sha256(), 0, TRIES
        with to.open("wb") as file:
            while at < declared.size_bytes:
                try:
                    async for data in self._download(version, artifact, at):
                        sha.update(data)
                        await asyncio.to_thread(file.write, data)
                        at += len(data)
                except FlywheelError as error:
                    left -= 1
                    if not (left and error.retryable):
                        raise
        if sha.hexdigest() != declared.sha256:
            raise ValueError(f"{artifact} of {version} arrived with sha256 {sha.hexdigest()}.")
        return to

    async def _download(self, version: str, artifact: str, offset: int) -> AsyncIterator[bytes]:
        request = registry_pb2.DownloadArtifactRequest(
            model_version=version, artifact=artifact, offset=offset
        )
        try:
            async for message in self.registry.DownloadArtifact(request, timeout=UPLOAD_SECONDS):
                yield message.data
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def collect_artifacts(self, *, dry_run: bool, grace: timedelta | None = None) -> Collected:
        """Deletes stored bytes that no version needs any more; a dry run only counts them."""
        request: Any = artifact_pb2.CollectArtifactsRequest(dry_run=dry_run)
        if grace is not None:
            request.grace.FromTimedelta(grace)
        total = Collected()
        while True:
            step = await self.registry.CollectArtifacts(request, timeout=UPLOAD_SECONDS)
            total = Collected(
                total.examined + step.examined_count,
                total.objects + step.collected_count,
                total.bytes + step.collected_bytes,
                total.purged_versions + step.purged_version_count,
            )
            request.page_token = step.next_page_token
            if not step.next_page_token:
                return total


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _part(content: bytes | Path, start: int, size: int) -> bytes:
    if isinstance(content, bytes):
        return content[start : start + size]
    with content.open("rb") as file:
        file.seek(start)
        return file.read(size)


def _chunks(data: bytes) -> Iterator[bytes]:
    return (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))
