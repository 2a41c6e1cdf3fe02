"""The methods of RegistryService that delete and restore models, versions and releases."""

from __future__ import annotations

from typing import Any

from flywheel_common.grpc.auth import actor
from flywheel_protos.registry.v1 import artifact_pb2 as pb
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_registry.api import convert_models, convert_releases
from flywheel_registry.api.mutations import Mutations
from flywheel_registry.deletion.deletion import Deletion
from flywheel_registry.models.names import ModelName, VersionName
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollouts.ports import RolloutRecords


class DeletionMethods(Mutations):
    """Part of the servicer."""

    _deletion: Deletion

    async def DeleteModelVersion(
        self, request: registry_pb2.DeleteModelVersionRequest, context: Any
    ) -> registry_pb2.DeleteModelVersionResponse:
        name, answer = VersionName.parse(request.name), registry_pb2.DeleteModelVersionResponse

        async def effect(records: RolloutRecords) -> registry_pb2.DeleteModelVersionResponse:
            await self._deletion.delete_version(records, name, request.reason, actor())
            return answer()

        return await self._mutate("DeleteModelVersion", request, answer, effect)

    async def RestoreModelVersion(
        self, request: pb.RestoreModelVersionRequest, context: Any
    ) -> pb.RestoreModelVersionResponse:
        name = VersionName.parse(request.name)

        async def effect(records: RolloutRecords) -> pb.RestoreModelVersionResponse:
            version = await self._deletion.restore_version(records, name, request.reason, actor())
            return pb.RestoreModelVersionResponse(model_version=convert_models.version_to_proto(version))

        return await self._mutate("RestoreModelVersion", request, pb.RestoreModelVersionResponse, effect)

    async def DeleteRelease(self, request: pb.DeleteReleaseRequest, context: Any) -> pb.DeleteReleaseResponse:
        name = ReleaseName.parse(request.name)

        async def effect(records: RolloutRecords) -> pb.DeleteReleaseResponse:
            await self._deletion.delete_release(records, name, request.reason, actor())
            return pb.DeleteReleaseResponse()

        return await self._mutate("DeleteRelease", request, pb.DeleteReleaseResponse, effect)

    async def RestoreRelease(
        self, request: pb.RestoreReleaseRequest, context: Any
    ) -> pb.RestoreReleaseResponse:
        name = ReleaseName.parse(request.name)

        async def effect(records: RolloutRecords) -> pb.RestoreReleaseResponse:
            release = await self._deletion.restore_release(records, name, request.reason, actor())
            return pb.RestoreReleaseResponse(release=convert_releases.release_to_proto(release))

        return await self._mutate("RestoreRelease", request, pb.RestoreReleaseResponse, effect)

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> pb.DeleteModelResponse:
        name = ModelName.parse(request.name)

        async def effect(records: RolloutRecords) -> pb.DeleteModelResponse:
            await self._deletion.delete_model(
                records, name, request.reason, actor(), stop_serving=request.stop_serving
            )
            return pb.DeleteModelResponse()

        return await self._mutate("DeleteModel", request, pb.DeleteModelResponse, effect)

    async def RestoreModel(self, request: pb.RestoreModelRequest, context: Any) -> pb.RestoreModelResponse:
        name = ModelName.parse(request.name)

        async def effect(records: RolloutRecords) -> pb.RestoreModelResponse:
            model = await self._deletion.restore_model(records, name, request.reason, actor())
            return pb.RestoreModelResponse(model=convert_models.model_to_proto(model))

        return await self._mutate("RestoreModel", request, pb.RestoreModelResponse, effect)
