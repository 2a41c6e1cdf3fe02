"""The methods of RegistryService about models and their versions: declaring, bytes in and out, stages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from flywheel_common.errors import InvalidArgument
from flywheel_common.grpc.auth import OPERATE, actor, require_role
from flywheel_common.names import check_id, parse_project
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry import convert, convert_evidence, convert_models
from flywheel_registry.absent import find_model, find_version
from flywheel_registry.catalog import Catalog
from flywheel_registry.mutating import Mutating
from flywheel_registry.names import ModelName, VersionName
from flywheel_registry.ports import Records
from flywheel_registry.promotion import Promotions
from flywheel_registry.transfer import CHUNK_BYTES, Transfers


class ModelMethods(Mutating):
    """Part of the servicer."""

    _catalog: Catalog
    _transfers: Transfers
    _promotions: Promotions

    # ------------------------------------------------------------------------------------------------ models

    async def CreateModel(self, request: pb.CreateModelRequest, context: Any) -> pb.CreateModelResponse:
        name = f"projects/{parse_project(request.parent)}/models/{check_id(request.model_id, 'model_id')}"
        wanted = convert_models.model(request.model, name)

        async def effect(records: Records) -> pb.CreateModelResponse:
            model = await self._catalog.create_model(records, wanted, actor())
            return pb.CreateModelResponse(model=convert_models.model_to_proto(model))

        return await self._mutate("CreateModel", request, pb.CreateModelResponse, effect)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        async with self._store.reading() as records:
            model = await find_model(records, ModelName.parse(request.name))
        return pb.GetModelResponse(model=convert_models.model_to_proto(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        convert.check_text(request)
        project = parse_project(request.parent)
        async with self._store.reading() as records:
            page = await self._catalog.list_models(
                records, project, request.filter, request.page_size, request.page_token
            )
        return pb.ListModelsResponse(
            models=map(convert_models.model_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.UpdateModelResponse:
        wanted = convert_models.model(request.model, str(ModelName.parse(request.model.name)))
        fields, etag = list(request.update_mask.paths), request.model.etag

        async def effect(records: Records) -> pb.UpdateModelResponse:
            model = await self._catalog.update_model(records, wanted, fields, etag, actor())
            return pb.UpdateModelResponse(model=convert_models.model_to_proto(model))

        return await self._mutate("UpdateModel", request, pb.UpdateModelResponse, effect)

    # ---------------------------------------------------------------------------------------------- versions

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Any
    ) -> pb.CreateModelVersionResponse:
        declared = convert_models.version(request.model_version, str(ModelName.parse(request.parent)))

        async def effect(records: Records) -> pb.CreateModelVersionResponse:
            version = await self._catalog.create_version(records, declared, actor())
            return pb.CreateModelVersionResponse(model_version=convert_models.version_to_proto(version))

        return await self._mutate("CreateModelVersion", request, pb.CreateModelVersionResponse, effect)

    async def GetModelVersion(
        self, request: pb.GetModelVersionRequest, context: Any
    ) -> pb.GetModelVersionResponse:
        async with self._store.reading() as records:
            version = await find_version(records, VersionName.parse(request.name))
        return pb.GetModelVersionResponse(model_version=convert_models.version_to_proto(version))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Any
    ) -> pb.ListModelVersionsResponse:
        convert.check_text(request)
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await self._catalog.list_versions(
                records, parent, request.filter, request.page_size, request.page_token
            )
        versions = map(convert_models.version_to_proto, page.items)
        return pb.ListModelVersionsResponse(model_versions=versions, next_page_token=page.next_page_token)

    async def ListFeatureUses(
        self, request: pb.ListFeatureUsesRequest, context: Any
    ) -> pb.ListFeatureUsesResponse:
        asked = parse_project(request.parent), request.page_size, request.page_token
        async with self._store.reading() as records:
            page = await self._catalog.list_feature_uses(records, *asked)
        uses = map(convert_models.feature_use_to_proto, page.items)
        return pb.ListFeatureUsesResponse(uses=uses, next_page_token=page.next_page_token)

    async def UploadArtifact(
        self, requests: AsyncIterator[pb.UploadArtifactRequest], context: Any
    ) -> pb.UploadArtifactResponse:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "target":
            raise InvalidArgument(
                "The first message must name the target: model_version and artifact.", reason="TARGET_MISSING"
            )
        name = VersionName.parse(first.target.model_version)
        version = await self._transfers.upload(name, first.target.artifact, _data(requests), actor())
        return pb.UploadArtifactResponse(model_version=convert_models.version_to_proto(version))

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        name = VersionName.parse(request.model_version)
        async for chunk in self._transfers.download(name, request.artifact):
            for start in range(0, len(chunk), CHUNK_BYTES):
                yield pb.DownloadArtifactResponse(data=chunk[start : start + CHUNK_BYTES])

    async def PromoteModelVersion(
        self, request: pb.PromoteModelVersionRequest, context: Any
    ) -> pb.PromoteModelVersionResponse:
        name, target = VersionName.parse(request.name), convert_models.stage(request.to_stage)
        if request.override:
            require_role(OPERATE, "Overriding a gate")

        async def effect(records: Records) -> pb.PromoteModelVersionResponse:
            done = await self._promotions.promote(
                records,
                name,
                target,
                request.reason,
                actor(),
                override=request.override,
                added=dict(request.evidence.values),
            )
            return pb.PromoteModelVersionResponse(
                model_version=convert_models.version_to_proto(done.version),
                passed=done.passed,
                evidence=convert_evidence.evidence_to_proto(done.evidence),
            )

        return await self._mutate("PromoteModelVersion", request, pb.PromoteModelVersionResponse, effect)

    async def RejectModelVersion(
        self, request: pb.RejectModelVersionRequest, context: Any
    ) -> pb.RejectModelVersionResponse:
        name = VersionName.parse(request.name)

        async def effect(records: Records) -> pb.RejectModelVersionResponse:
            version = await self._promotions.reject(records, name, request.reason, actor())
            return pb.RejectModelVersionResponse(model_version=convert_models.version_to_proto(version))

        return await self._mutate("RejectModelVersion", request, pb.RejectModelVersionResponse, effect)


async def _data(requests: AsyncIterator[pb.UploadArtifactRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "data":
            raise InvalidArgument(
                "Only the first message names the target; the rest carry data.", reason="TARGET_REPEATED"
            )
        yield request.data
