"""The edge: protobuf in, a use case, protobuf out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message

from flywheel_common.auth import OPERATE, actor, require_role
from flywheel_common.context import left_seconds
from flywheel_common.errors import InvalidArgument
from flywheel_common.idempotency import Idempotency
from flywheel_common.names import check_id, parse_project
from flywheel_common.paging import cut, decode_token, page_size
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_protos.registry.v1.registry_pb2_grpc import RegistryServiceServicer
from flywheel_registry import convert
from flywheel_registry.absent import find_evidence, find_model, find_release, find_rollout, find_version
from flywheel_registry.catalog import PAGE, Catalog
from flywheel_registry.names import EvidenceName, ModelName, ReleaseName, RolloutName, VersionName
from flywheel_registry.ports import Gateways, Records
from flywheel_registry.promotion import Promotions
from flywheel_registry.rollback import Rollbacks
from flywheel_registry.rollouts import Rollouts
from flywheel_registry.store.records import TRANSLATE, PostgresStore
from flywheel_registry.transfer import CHUNK_BYTES, Transfers
from flywheel_registry.watching import ServingBoard

M = TypeVar("M", bound=Message)
ANSWER_RESERVE_SECONDS = 0.25
"""What a waiting rollback keeps of its caller's deadline, to answer in time."""
SEEN_SECONDS = 3600.0
"""ListGateways shows those heard of in the last hour."""
MAX_GATEWAY_ID = 200


class RegistryServicer(RegistryServiceServicer):
    """`flywheel.registry.v1.RegistryService`."""

    def __init__(
        self,
        *,
        store: PostgresStore,
        idempotency: Idempotency,
        catalog: Catalog,
        transfers: Transfers,
        promotions: Promotions,
        rollouts: Rollouts,
        rollbacks: Rollbacks,
        board: ServingBoard,
        gateways: Gateways,
        rollback_wait_seconds: float,
    ) -> None:
        self._store = store
        self._idempotency = idempotency
        self._catalog = catalog
        self._transfers = transfers
        self._promotions = promotions
        self._rollouts = rollouts
        self._rollbacks = rollbacks
        self._board = board
        self._gateways = gateways
        self._rollback_wait = rollback_wait_seconds

    async def _mutate(
        self, method: str, request: Any, answer: type[M], effect: Callable[[Records], Awaitable[M]]
    ) -> M:
        """One transaction: the effect, its audit, its events and the answer that a repeat gets."""
        convert.check_text(request)
        return await self._idempotency.run(
            method,
            request.request_id,
            request,
            answer,
            lambda conn: effect(self._store.on(conn)),
            translate=TRANSLATE,
        )

    # ------------------------------------------------------------------------------------------------ models

    async def CreateModel(self, request: pb.CreateModelRequest, context: Any) -> pb.CreateModelResponse:
        name = f"projects/{parse_project(request.parent)}/models/{check_id(request.model_id, 'model_id')}"
        wanted = convert.model(request.model, name)

        async def effect(records: Records) -> pb.CreateModelResponse:
            model = await self._catalog.create_model(records, wanted, actor())
            return pb.CreateModelResponse(model=convert.model_to_proto(model))

        return await self._mutate("CreateModel", request, pb.CreateModelResponse, effect)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        async with self._store.reading() as records:
            model = await find_model(records, ModelName.parse(request.name))
        return pb.GetModelResponse(model=convert.model_to_proto(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        convert.check_text(request)
        project = parse_project(request.parent)
        async with self._store.reading() as records:
            page = await self._catalog.list_models(
                records, project, request.filter, request.page_size, request.page_token
            )
        return pb.ListModelsResponse(
            models=map(convert.model_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.UpdateModelResponse:
        wanted = convert.model(request.model, str(ModelName.parse(request.model.name)))
        fields, etag = list(request.update_mask.paths), request.model.etag

        async def effect(records: Records) -> pb.UpdateModelResponse:
            model = await self._catalog.update_model(records, wanted, fields, etag, actor())
            return pb.UpdateModelResponse(model=convert.model_to_proto(model))

        return await self._mutate("UpdateModel", request, pb.UpdateModelResponse, effect)

    # ---------------------------------------------------------------------------------------------- versions

    async def CreateModelVersion(
        self, request: pb.CreateModelVersionRequest, context: Any
    ) -> pb.CreateModelVersionResponse:
        declared = convert.version(request.model_version, str(ModelName.parse(request.parent)))

        async def effect(records: Records) -> pb.CreateModelVersionResponse:
            version = await self._catalog.create_version(records, declared, actor())
            return pb.CreateModelVersionResponse(model_version=convert.version_to_proto(version))

        return await self._mutate("CreateModelVersion", request, pb.CreateModelVersionResponse, effect)

    async def GetModelVersion(
        self, request: pb.GetModelVersionRequest, context: Any
    ) -> pb.GetModelVersionResponse:
        async with self._store.reading() as records:
            version = await find_version(records, VersionName.parse(request.name))
        return pb.GetModelVersionResponse(model_version=convert.version_to_proto(version))

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
        versions = map(convert.version_to_proto, page.items)
        return pb.ListModelVersionsResponse(model_versions=versions, next_page_token=page.next_page_token)

    async def ListFeatureUses(
        self, request: pb.ListFeatureUsesRequest, context: Any
    ) -> pb.ListFeatureUsesResponse:
        asked = parse_project(request.parent), request.page_size, request.page_token
        async with self._store.reading() as records:
            page = await self._catalog.list_feature_uses(records, *asked)
        uses = map(convert.feature_use_to_proto, page.items)
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
        return pb.UploadArtifactResponse(model_version=convert.version_to_proto(version))

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
        name, target = VersionName.parse(request.name), convert.stage(request.to_stage)
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
                model_version=convert.version_to_proto(done.version),
                passed=done.passed,
                evidence=convert.evidence_to_proto(done.evidence),
            )

        return await self._mutate("PromoteModelVersion", request, pb.PromoteModelVersionResponse, effect)

    async def RejectModelVersion(
        self, request: pb.RejectModelVersionRequest, context: Any
    ) -> pb.RejectModelVersionResponse:
        name = VersionName.parse(request.name)

        async def effect(records: Records) -> pb.RejectModelVersionResponse:
            version = await self._promotions.reject(records, name, request.reason, actor())
            return pb.RejectModelVersionResponse(model_version=convert.version_to_proto(version))

        return await self._mutate("RejectModelVersion", request, pb.RejectModelVersionResponse, effect)

    # ---------------------------------------------------------------------------------------------- releases

    async def CreateRelease(self, request: pb.CreateReleaseRequest, context: Any) -> pb.CreateReleaseResponse:
        bundle = convert.release(request.release, str(ModelName.parse(request.parent)))

        async def effect(records: Records) -> pb.CreateReleaseResponse:
            release = await self._catalog.create_release(records, bundle, actor())
            return pb.CreateReleaseResponse(release=convert.release_to_proto(release))

        return await self._mutate("CreateRelease", request, pb.CreateReleaseResponse, effect)

    async def GetRelease(self, request: pb.GetReleaseRequest, context: Any) -> pb.GetReleaseResponse:
        async with self._store.reading() as records:
            release = await find_release(records, ReleaseName.parse(request.name))
        return pb.GetReleaseResponse(release=convert.release_to_proto(release))

    async def ListReleases(self, request: pb.ListReleasesRequest, context: Any) -> pb.ListReleasesResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await self._catalog.list_releases(records, parent, request.page_size, request.page_token)
        return pb.ListReleasesResponse(
            releases=map(convert.release_to_proto, page.items), next_page_token=page.next_page_token
        )

    # ---------------------------------------------------------------------------------------------- rollouts

    async def StartRollout(self, request: pb.StartRolloutRequest, context: Any) -> pb.StartRolloutResponse:
        model, challenger = (
            str(ModelName.parse(request.parent)),
            ReleaseName.parse(request.challenger_release),
        )
        policy = convert.rollout_policy(request.policy) if request.HasField("policy") else None

        async def effect(records: Records) -> pb.StartRolloutResponse:
            rollout = await self._rollouts.start(records, model, challenger, policy, request.reason, actor())
            return pb.StartRolloutResponse(rollout=convert.rollout_to_proto(rollout))

        return await self._mutate("StartRollout", request, pb.StartRolloutResponse, effect)

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Any) -> pb.GetRolloutResponse:
        async with self._store.reading() as records:
            rollout = await find_rollout(records, RolloutName.parse(request.name))
        return pb.GetRolloutResponse(rollout=convert.rollout_to_proto(rollout))

    async def ListRollouts(self, request: pb.ListRolloutsRequest, context: Any) -> pb.ListRolloutsResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await self._catalog.list_rollouts(records, parent, request.page_size, request.page_token)
        return pb.ListRolloutsResponse(
            rollouts=map(convert.rollout_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def PauseRollout(self, request: pb.PauseRolloutRequest, context: Any) -> pb.PauseRolloutResponse:
        name = RolloutName.parse(request.name)

        async def effect(records: Records) -> pb.PauseRolloutResponse:
            rollout = await self._rollouts.pause(records, name, request.reason, actor())
            return pb.PauseRolloutResponse(rollout=convert.rollout_to_proto(rollout))

        return await self._mutate("PauseRollout", request, pb.PauseRolloutResponse, effect)

    async def ResumeRollout(self, request: pb.ResumeRolloutRequest, context: Any) -> pb.ResumeRolloutResponse:
        name = RolloutName.parse(request.name)

        async def effect(records: Records) -> pb.ResumeRolloutResponse:
            rollout = await self._rollouts.resume(records, name, request.reason, actor())
            return pb.ResumeRolloutResponse(rollout=convert.rollout_to_proto(rollout))

        return await self._mutate("ResumeRollout", request, pb.ResumeRolloutResponse, effect)

    async def AbortRollout(self, request: pb.AbortRolloutRequest, context: Any) -> pb.AbortRolloutResponse:
        name = RolloutName.parse(request.name)

        async def effect(records: Records) -> pb.AbortRolloutResponse:
            rollout = await self._rollouts.abort(records, name, request.reason, actor())
            return pb.AbortRolloutResponse(rollout=convert.rollout_to_proto(rollout))

        return await self._mutate("AbortRollout", request, pb.AbortRolloutResponse, effect)

    async def SkipRolloutStep(
        self, request: pb.SkipRolloutStepRequest, context: Any
    ) -> pb.SkipRolloutStepResponse:
        name = RolloutName.parse(request.name)
        require_role(OPERATE, "Skipping a rollout step")

        async def effect(records: Records) -> pb.SkipRolloutStepResponse:
            rollout = await self._rollouts.skip(records, name, request.reason, actor())
            return pb.SkipRolloutStepResponse(rollout=convert.rollout_to_proto(rollout))

        return await self._mutate("SkipRolloutStep", request, pb.SkipRolloutStepResponse, effect)

    async def RollbackModel(self, request: pb.RollbackModelRequest, context: Any) -> pb.RollbackModelResponse:
        began, model = time.monotonic(), str(ModelName.parse(request.name))
        to_release = ReleaseName.parse(request.to_release) if request.to_release else None

        async def effect(records: Records) -> pb.RollbackModelResponse:
            await self._rollbacks.roll_back(records, model, to_release, request.reason, actor())
            return pb.RollbackModelResponse(model=convert.model_to_proto(await find_model(records, model)))

        answer = await self._mutate("RollbackModel", request, pb.RollbackModelResponse, effect)
        async with self._store.reading() as records:
            generation = (await records.routing(model)).generation
        left = left_seconds() if context.time_remaining() is not None else self._rollback_wait
        wait = max(0.0, (self._rollback_wait if left is None else left) - ANSWER_RESERVE_SECONDS)
        said = await self._rollbacks.acknowledged(model, generation, since=began, timeout_seconds=wait)
        answer.complete = said.complete
        answer.elapsed.FromTimedelta(timedelta(seconds=said.seconds))
        answer.gateways.extend(map(convert.gateway_to_proto, said.gateways))
        return answer

    # ------------------------------------------------------------------------------------------------- proof

    async def ListServingHistory(
        self, request: pb.ListServingHistoryRequest, context: Any
    ) -> pb.ListServingHistoryResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await self._catalog.list_spans(records, parent, request.page_size, request.page_token)
        spans = [convert.span_to_proto(parent, span) for _, span in page.items]
        return pb.ListServingHistoryResponse(spans=spans, next_page_token=page.next_page_token)

    async def GetEvidence(self, request: pb.GetEvidenceRequest, context: Any) -> pb.GetEvidenceResponse:
        async with self._store.reading() as records:
            evidence = await find_evidence(records, EvidenceName.parse(request.name))
        return pb.GetEvidenceResponse(evidence=convert.evidence_to_proto(evidence))

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Any
    ) -> pb.ListAuditEntriesResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await self._catalog.list_audit(records, parent, request.page_size, request.page_token)
        return pb.ListAuditEntriesResponse(
            entries=map(convert.audit_to_proto, page.items), next_page_token=page.next_page_token
        )

    # ---------------------------------------------------------------------------------------------- gateways

    async def WatchServing(
        self, request: pb.WatchServingRequest, context: Any
    ) -> AsyncIterator[pb.WatchServingResponse]:
        project = parse_project(request.parent) if request.parent else ""
        await self._gateways.watching(_gateway_id(request.gateway_id), project)
        async for models in self._board.watch(project):
            yield pb.WatchServingResponse(models=map(convert.serving_to_proto, models))

    async def ReportServing(self, request: pb.ReportServingRequest, context: Any) -> pb.ReportServingResponse:
        convert.check_text(request)
        await self._gateways.heartbeat(
            _gateway_id(request.gateway_id), [convert.observed(model) for model in request.models]
        )
        return pb.ReportServingResponse()

    async def ListGateways(self, request: pb.ListGatewaysRequest, context: Any) -> pb.ListGatewaysResponse:
        size, after = (
            page_size(request.page_size, default=PAGE),
            decode_token(request.page_token, query="gateways"),
        )
        found = await self._gateways.seen(
            SEEN_SECONDS, str(after[0]).replace("\0", "") if after else "", size + 1
        )
        page = cut(found, size, lambda gateway: [gateway.id], query="gateways")
        return pb.ListGatewaysResponse(
            gateways=map(convert.gateway_to_proto, page.items), next_page_token=page.next_page_token
        )


async def _data(requests: AsyncIterator[pb.UploadArtifactRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "data":
            raise InvalidArgument(
                "Only the first message names the target; the rest carry data.", reason="TARGET_REPEATED"
            )
        yield request.data


def _gateway_id(text: str) -> str:
    if not text or len(text) > MAX_GATEWAY_ID or "\0" in text:
        raise InvalidArgument(
            f"gateway_id must have 1 to {MAX_GATEWAY_ID} characters.", reason="INVALID_ID", field="gateway_id"
        )
    return text
