"""`Weights` of model versions in the registry."""

from __future__ import annotations

from flywheel_common.errors import NotFound
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import WEIGHTS, artifact_key
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
        key = artifact_key(declared)
        if await self._objects.head(key) is None:
            await self._objects.put(key, await self._registry.download(version, WEIGHTS))
        return f"s3://{self._bucket}/{key}", declared
