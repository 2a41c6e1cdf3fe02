"""The methods of RegistryService about files: uploads, downloads, checks and collection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from flywheel_common.errors import InvalidPageToken
from flywheel_common.grpc.auth import actor
from flywheel_common.paging import decode_token, encode_token
from flywheel_protos.registry.v1 import artifact_pb2 as pb
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_registry.api import convert_models
from flywheel_registry.api.convert import to_seconds
from flywheel_registry.api.errors import TargetMissing, TargetRepeated
from flywheel_registry.api.idle import received, taken
from flywheel_registry.api.mutations import Mutations
from flywheel_registry.artifacts.check import VersionCheck
from flywheel_registry.artifacts.parts import PART_BYTES, PartUploads
from flywheel_registry.artifacts.transfer import ArtifactTransfer
from flywheel_registry.artifacts.verification import CHUNK_BYTES
from flywheel_registry.collection.collection import SHARDS, ArtifactCollection
from flywheel_registry.models.names import VersionName

COLLECTION = "collect artifacts"
LONGEST_GRACE_SECONDS = 3650 * 86_400.0


class ArtifactMethods(Mutations):
    """Part of the servicer."""

    _artifacts: ArtifactTransfer
    _parts: PartUploads
    _collection: ArtifactCollection
    _checks: VersionCheck
    _idle_seconds: float

    async def UploadArtifact(
        self, requests: AsyncIterator[registry_pb2.UploadArtifactRequest], context: Any
    ) -> registry_pb2.UploadArtifactResponse:
        messages = received(requests, self._idle_seconds)
        target = (await _first(messages)).target
        name = VersionName.parse(target.model_version)
        version = await self._artifacts.upload(name, target.artifact, _data(messages), actor())
        return registry_pb2.UploadArtifactResponse(model_version=convert_models.version_to_proto(version))

    async def DownloadArtifact(
        self, request: registry_pb2.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[registry_pb2.DownloadArtifactResponse]:
        name = VersionName.parse(request.model_version)
        if request.offset or request.length:
            chunks = self._artifacts.download_range(name, request.artifact, request.offset, request.length)
        else:
            chunks = self._artifacts.download(name, request.artifact)
        async for answer in taken(_pieces(chunks), self._idle_seconds):
            yield answer

    async def GetArtifactUpload(
        self, request: pb.GetArtifactUploadRequest, context: Any
    ) -> pb.GetArtifactUploadResponse:
        name = VersionName.parse(request.model_version)
        upload = await self._parts.status(name, request.artifact)
        parts = [pb.ArtifactPart(number=n, sha256=sha256) for n, sha256 in sorted(upload.parts.items())]
        return pb.GetArtifactUploadResponse(
            upload=pb.ArtifactUpload(
                model_version=str(name),
                artifact=request.artifact,
                part_bytes=PART_BYTES,
                part_count=upload.part_count,
                parts=parts,
                stored=upload.declared.stored,
            )
        )

    async def UploadArtifactPart(
        self, requests: AsyncIterator[pb.UploadArtifactPartRequest], context: Any
    ) -> pb.UploadArtifactPartResponse:
        messages = received(requests, self._idle_seconds)
        target = (await _first(messages)).target
        name = VersionName.parse(target.model_version)
        await self._parts.put(name, target.artifact, target.number, target.sha256, _data(messages))
        return pb.UploadArtifactPartResponse()

    async def CompleteArtifactUpload(
        self, request: pb.CompleteArtifactUploadRequest, context: Any
    ) -> pb.CompleteArtifactUploadResponse:
        name = VersionName.parse(request.model_version)
        version = await self._parts.complete(name, request.artifact, actor())
        return pb.CompleteArtifactUploadResponse(model_version=convert_models.version_to_proto(version))

    async def CheckModelVersion(
        self, request: registry_pb2.CheckModelVersionRequest, context: Any
    ) -> registry_pb2.CheckModelVersionResponse:
        version = await self._checks.check(VersionName.parse(request.name), actor())
        return registry_pb2.CheckModelVersionResponse(model_version=convert_models.version_to_proto(version))

    async def CollectArtifacts(
        self, request: pb.CollectArtifactsRequest, context: Any
    ) -> pb.CollectArtifactsResponse:
        grace = None
        if request.HasField("grace"):
            # Longer than any installation exists, and within the range of times.
            grace = timedelta(seconds=max(0.0, min(to_seconds(request.grace), LONGEST_GRACE_SECONDS)))
        done = await self._collection.step(_shard(request.page_token), grace, dry_run=request.dry_run)
        following = "" if done.next_shard is None else encode_token([done.next_shard], query=COLLECTION)
        return pb.CollectArtifactsResponse(
            examined_count=done.examined,
            collected_count=done.objects,
            collected_bytes=done.bytes,
            purged_version_count=done.purged_versions,
            next_page_token=following,
        )


def _shard(token: str) -> int:
    match decode_token(token, query=COLLECTION):
        case None:
            return 0
        case [int(shard)] if 0 <= shard < len(SHARDS):
            return shard
    raise InvalidPageToken("page_token does not belong to this method.", field="page_token")


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[registry_pb2.DownloadArtifactResponse]:
    async for chunk in chunks:
        for start in range(0, len(chunk), CHUNK_BYTES):
            yield registry_pb2.DownloadArtifactResponse(data=chunk[start : start + CHUNK_BYTES])


async def _first(messages: AsyncIterator[Any]) -> Any:
    first = await anext(messages, None)
    if first is None or first.WhichOneof("part") != "target":
        raise TargetMissing("The first message must name the target: model_version and artifact.")
    return first


async def _data(messages: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for message in messages:
        if message.WhichOneof("part") != "data":
            raise TargetRepeated("Only the first message names the target; all others must carry data.")
        # Storing the part that this chunk completes may take long: neither message nor data stay meanwhile.
        taking, message = [message.data], None
        yield taking.pop()
