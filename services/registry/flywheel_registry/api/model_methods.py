"""The methods of RegistryService about models and versions: registration and stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flywheel_common.grpc.auth import actor, current_principal, require_role
from flywheel_common.names import check_id, parse_project
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.api import convert_evidence, convert_models, listing
from flywheel_registry.api.convert import check_texts
from flywheel_registry.api.mutations import Mutations
from flywheel_registry.evidence.producers import EvidenceProducers
from flywheel_registry.gates.verdicts import ExperimentVerdicts
from flywheel_registry.models.catalog import POLICY_FIELDS, ModelCatalog
from flywheel_registry.models.lookups import find_model, find_version
from flywheel_registry.models.names import ModelName, VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.production_reads import ProductionReads
from flywheel_registry.permissions import (
    CHANGE_POLICY,
    OVERRIDE_GATE,
    PROMOTE_TO_PRODUCTION,
    REQUEST_PERMISSIONS,
    SEND_EVIDENCE,
)
from flywheel_registry.promotion.evaluation import EvaluationLog
from flywheel_registry.promotion.promotion import Promotions
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.stages.transitions import Stage


class ModelMethods(Mutations):
    """Part of the servicer."""

    _models: ModelCatalog
    _production: ProductionReads[pb.ListModelVersionsResponse]
    _promotions: Promotions
    _experiment_verdicts: ExperimentVerdicts
    _evaluations: EvaluationLog
    _producers: EvidenceProducers

    # ------------------------------------------------------------------------------------------------ models

    async def CreateModel(self, request: pb.CreateModelRequest, context: Any) -> pb.CreateModelResponse:
        name = f"projects/{parse_project(request.parent)}/models/{check_id(request.model_id, 'model_id')}"
        wanted = convert_models.model(request.model, name)

        async def effect(records: ModelRecords) -> pb.CreateModelResponse:
            model = await self._models.create_model(records, wanted, actor())
            return pb.CreateModelResponse(model=convert_models.model_to_proto(model))

        return await self._mutate("CreateModel", request, pb.CreateModelResponse, effect)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        async with self._store.reading() as records:
            model = await find_model(records, ModelName.parse(request.name))
        return pb.GetModelResponse(model=convert_models.model_to_proto(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        check_texts(request)
        project = parse_project(request.parent)
        async with self._store.reading() as records:
            page = await listing.list_models(
                records, project, request.filter, request.page_size, request.page_token
            )
        models = map(convert_models.model_to_proto, page.items)
        return pb.ListModelsResponse(models=models, next_page_token=page.next_page_token)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.UpdateModelResponse:
        wanted = convert_models.model(request.model, str(ModelName.parse(request.model.name)))
        fields = list(request.update_mask.paths) or convert_models.populated_fields(request.model)
        etag = request.model.etag
        if not POLICY_FIELDS.isdisjoint(fields):
            _require(CHANGE_POLICY)

        async def effect(records: ModelRecords) -> pb.UpdateModelResponse:
            model = await self._models.update_model(records, wanted, fields, etag, actor())
            return pb.UpdateModelResponse(model=convert_models.model_to_proto(model))

        return await self._mutate("UpdateModel", request, pb.UpdateModelResponse, effect)

    # ---------------------------------------------------------------------------------------------- versions

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Any
    ) -> pb.CreateModelVersionResponse:
        declared = convert_models.version(request.model_version, str(ModelName.parse(request.parent)))

        async def effect(records: ModelRecords) -> pb.CreateModelVersionResponse:
            version = await self._models.create_version(records, declared, actor())
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
        check_texts(request)
        parent = str(ModelName.parse(request.parent))
        if (
            listing.asks_for_production(request.filter, request.page_size, request.page_token)
            and not request.with_golden_rows
        ):
            return await self._production.of(parent)
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await listing.list_versions(
                records,
                parent,
                request.filter,
                request.page_size,
                request.page_token,
                golden=request.with_golden_rows,
            )
        return convert_models.versions_page(page.items, page.next_page_token)

    async def ListFeatureUses(
        self, request: pb.ListFeatureUsesRequest, context: Any
    ) -> pb.ListFeatureUsesResponse:
        project = parse_project(request.parent)
        async with self._store.reading() as records:
            page = await listing.list_feature_uses(records, project, request.page_size, request.page_token)
        uses = map(convert_models.feature_use_to_proto, page.items)
        return pb.ListFeatureUsesResponse(uses=uses, next_page_token=page.next_page_token)

    # ---------------------------------------------------------------------------------------------- stages

    async def PromoteModelVersion(
        self, request: pb.PromoteModelVersionRequest, context: Any
    ) -> pb.PromoteModelVersionResponse:
        name, target = VersionName.parse(request.name), convert_models.stage(request.to_stage)
        if request.override:
            _require(OVERRIDE_GATE)
        if request.evidence.values:
            _require(SEND_EVIDENCE)
            self._producers.check(current_principal())

        # Before the transaction, because it asks the monitor.
        to_production = target in (None, Stage.PRODUCTION)
        experiments = await self._experiment_verdicts.of_version(name) if to_production else ()

        def check_path(path: Sequence[Stage]) -> None:
            if Stage.PRODUCTION in path:
                _require(PROMOTE_TO_PRODUCTION)

        async def effect(records: RolloutRecords) -> pb.PromoteModelVersionResponse:
            result = await self._promotions.promote(
                records,
                name,
                target,
                request.reason,
                actor(),
                override=request.override,
                check_path=check_path,
                added=dict(request.evidence.values),
                experiments=experiments,
            )
            return pb.PromoteModelVersionResponse(
                model_version=convert_models.version_to_proto(result.version),
                passed=result.passed,
                evidence=convert_evidence.evidence_to_proto(result.evidence),
            )

        return await self._mutate("PromoteModelVersion", request, pb.PromoteModelVersionResponse, effect)

    async def RecordEvaluation(
        self, request: pb.RecordEvaluationRequest, context: Any
    ) -> pb.RecordEvaluationResponse:
        self._producers.check(current_principal())
        name = VersionName.parse(request.name)
        champion = VersionName.parse(request.champion_version) if request.champion_version else None

        async def effect(records: RolloutRecords) -> pb.RecordEvaluationResponse:
            evidence = await self._evaluations.record(
                records, name, request.values, champion, request.findings, actor()
            )
            return pb.RecordEvaluationResponse(evidence=convert_evidence.evidence_to_proto(evidence))

        return await self._mutate("RecordEvaluation", request, pb.RecordEvaluationResponse, effect)

    async def RejectModelVersion(
        self, request: pb.RejectModelVersionRequest, context: Any
    ) -> pb.RejectModelVersionResponse:
        name = VersionName.parse(request.name)

        async def effect(records: RolloutRecords) -> pb.RejectModelVersionResponse:
            version = await self._promotions.reject(records, name, request.reason, actor())
            return pb.RejectModelVersionResponse(model_version=convert_models.version_to_proto(version))

        return await self._mutate("RejectModelVersion", request, pb.RejectModelVersionResponse, effect)


def _require(action: str) -> None:
    """Raises RoleRequired unless the caller has one of the roles of the action."""
    require_role(REQUEST_PERMISSIONS[action], action)
