"""`Releases` of the registry."""

from __future__ import annotations

import hashlib

import grpc

from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_common.scoring.rules import scoring_rules
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import MODEL, artifact_key
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_trainer.jobs.errors import UnknownRelease, UnscorableRelease
from flywheel_trainer.jobs.scoring_ports import ScoredRelease, StoredFile
from flywheel_trainer.store.grpc.calls import response_of
from flywheel_trainer.store.grpc.registry import PEER, GrpcRegistry
from flywheel_trainer.store.grpc.weights import stored

VERSION_THRESHOLD = 0.5
"""Threshold of a model version without a release."""


class RegisteredReleases:
    """`Releases` that copies a release and its files to this service's bucket if they are not there yet."""

    def __init__(
        self, channel: grpc.aio.Channel, registry: GrpcRegistry, objects: ObjectStore, bucket: str
    ) -> None:
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel)
        self._registry, self._objects, self._bucket = registry, objects, bucket

    async def of(self, name: str) -> ScoredRelease:
        try:
            release, version = await self._release(name)
        except NotFound as error:
            raise UnknownRelease.of(name) from error
        serving = model_pb2.ServingRelease(release=release, model_version=version)
        serving.model_version.ClearField("golden_rows")
        try:
            rules = scoring_rules(release, version.signature)
        except (ValueError, InvalidArgument) as error:
            raise UnscorableRelease(f"{name} cannot be scored with: {error}.") from error
        feature_set = release.feature_set or version.feature_set
        if not feature_set or MODEL not in {one.name for one in version.artifacts}:
            lacks = "feature set" if not feature_set else MODEL
            raise UnscorableRelease(f"{name} has no {lacks}.")
        content = serving.SerializeToString(deterministic=True)
        message = await self._stored("release", hashlib.sha256(content).hexdigest(), content)
        files = [await self._file(version, artifact) for artifact in version.artifacts]
        return ScoredRelease(
            name=name,
            model=version.name.partition("/versions/")[0],
            feature_set=feature_set,
            features=tuple(one.name for one in rules.signature.inputs),
            message=message,
            files=tuple(file for file in files if file is not None),
        )

    async def _release(self, name: str) -> tuple[model_pb2.Release, model_pb2.ModelVersion]:
        if "/versions/" in name:
            version = await self._registry.version(name)
            return model_pb2.Release(model_version=name, threshold=VERSION_THRESHOLD), version
        request = registry_pb2.GetReleaseRequest(name=name)
        release = (await response_of(PEER, self._stub.GetRelease(request))).release
        return release, await self._registry.version(release.model_version)

    async def _file(self, version: model_pb2.ModelVersion, artifact: model_pb2.Artifact) -> StoredFile | None:
        """The model, or a file with its weights; other files, such as reports, are not needed."""
        if not artifact.name.startswith(MODEL):
            return None
        sha256 = artifact.sha256.lower()
        key = await stored(self._registry, self._objects, version, artifact.name, sha256)
        return StoredFile(artifact.name, f"s3://{self._bucket}/{key}", sha256)

    async def _stored(self, name: str, sha256: str, content: bytes) -> StoredFile:
        key = artifact_key(sha256)
        await self._objects.put(key, content)
        return StoredFile(name, f"s3://{self._bucket}/{key}", sha256)
