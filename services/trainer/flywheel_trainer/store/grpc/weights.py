"""`Weights` of versions in the registry."""

from __future__ import annotations

from flywheel_common.errors import NotFound
from flywheel_common.storage.objects import ObjectStore
from flywheel_trainer.pipelines.artifacts import artifact_key
from flywheel_trainer.recipes.outcome import WEIGHTS
from flywheel_trainer.store.grpc.registry import GrpcRegistry


class RegisteredWeights:
    """Weights of registered versions, brought to this service's bucket under their digest when they are not there."""

    def __init__(self, registry: GrpcRegistry, objects: ObjectStore, bucket: str) -> None:
        self._registry, self._objects, self._bucket = registry, objects, bucket

    async def of(self, model_version: str) -> tuple[str, str] | None:
        try:
            version = await self._registry.version(model_version)
        except NotFound as error:
            raise NotFound(
                f"Model version {model_version!r} does not exist.", reason="UNKNOWN_MODEL_VERSION"
            ) from error
        declared = next((a.sha256 for a in version.artifacts if a.name == WEIGHTS), None)
        if declared is None:
            return None
        key = artifact_key(declared)
        if await self._objects.head(key) is None:
            await self._objects.put(key, await self._registry.download(version, WEIGHTS))
        return f"s3://{self._bucket}/{key}", declared
