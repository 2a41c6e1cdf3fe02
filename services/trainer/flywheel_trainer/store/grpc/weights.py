"""`Weights` of model versions in the registry."""

from __future__ import annotations

from flywheel_common.errors import NotFound
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import WEIGHTS, artifact_key
from flywheel_protos.registry.v1 import model_pb2
from flywheel_trainer.jobs.errors import UnknownModelVersion
from flywheel_trainer.store.grpc.registry import GrpcRegistry


class RegisteredWeights:
    """`Weights` that downloads a version's weights to this service's bucket if they are not there yet."""

    def __init__(self, registry: GrpcRegistry, objects: ObjectStore, bucket: str) -> None:
        self._registry, self._objects, self._bucket = registry, objects, bucket

    async def of(self, model_version: str) -> tuple[str, str] | None:
        try:
            version = await self._registry.version(model_version)
        except NotFound as error:
            raise UnknownModelVersion.of(model_version) from error
        declared = next((a.sha256 for a in version.artifacts if a.name == WEIGHTS), None)
        if declared is None:
            return None
        key = await stored(self._registry, self._objects, version, WEIGHTS, declared)
        return f"s3://{self._bucket}/{key}", declared


async def stored(
    registry: GrpcRegistry, objects: ObjectStore, version: model_pb2.ModelVersion, name: str, sha256: str
) -> str:
    """The key of a version's file in this service's bucket; it is copied in pieces if it is not there yet."""
    key = artifact_key(sha256)
    if await objects.head(key) is None:
        await objects.put_stream(key, registry.stream(version, name))
    return key
