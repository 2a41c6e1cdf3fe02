"""The methods of RegistryService about what serves: rollback, history, desired state and gateway reports."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from flywheel_common.context import left_seconds
from flywheel_common.errors import InvalidId
from flywheel_common.grpc.auth import actor
from flywheel_common.names import parse_project
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.api import convert_models, convert_serving, listing
from flywheel_registry.api.convert import check_texts, to_time
from flywheel_registry.api.errors import SpecChanged
from flywheel_registry.api.idle import taken
from flywheel_registry.api.mutations import Mutations
from flywheel_registry.models.lookups import find_model, find_version
from flywheel_registry.models.names import ModelName, VersionName
from flywheel_registry.releases.lookups import find_release
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollback.acknowledgement import Acknowledgements
from flywheel_registry.rollback.rollback import Rollbacks
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.serving.desired_state_cache import DesiredStateCache
from flywheel_registry.serving.ports import Gateways
from flywheel_registry.serving.variants import Variants

ANSWER_RESERVE_SECONDS = 0.25
"""How much of its caller's deadline a waiting rollback keeps, to answer in time."""
MAX_GATEWAY_ID = 200
"""Longest gateway id, in characters."""


class ServingMethods(Mutations):
    """Part of the servicer."""

    _rollbacks: Rollbacks
    _acknowledgements: Acknowledgements
    _rollback_wait: float
    _desired_state: DesiredStateCache
    _gateways: Gateways
    _variants: Variants
    _idle_seconds: float

    async def RollbackModel(self, request: pb.RollbackModelRequest, context: Any) -> pb.RollbackModelResponse:
        began, model = time.monotonic(), str(ModelName.parse(request.name))
        to_release = ReleaseName.parse(request.to_release) if request.to_release else None

        async def effect(records: RolloutRecords) -> pb.RollbackModelResponse:
            await self._rollbacks.roll_back(records, model, to_release, request.reason, actor())
            found = await find_model(records, model)
            return pb.RollbackModelResponse(model=convert_models.model_to_proto(found))

        response = await self._mutate("RollbackModel", request, pb.RollbackModelResponse, effect)
        async with self._store.reading() as records:
            generation = (await records.routing(model)).generation
        left = left_seconds() if context.time_remaining() is not None else self._rollback_wait
        wait = max(0.0, (self._rollback_wait if left is None else left) - ANSWER_RESERVE_SECONDS)
        acknowledged = await self._acknowledgements.wait(model, generation, since=began, timeout_seconds=wait)
        response.complete = acknowledged.complete
        response.unacknowledged_gateways.extend(acknowledged.unacknowledged)
        response.elapsed.FromTimedelta(timedelta(seconds=acknowledged.seconds))
        response.gateways.extend(map(convert_serving.gateway_to_proto, acknowledged.gateways))
        return response

    async def SetModelVariants(
        self, request: pb.SetModelVariantsRequest, context: Any
    ) -> pb.SetModelVariantsResponse:
        model = str(ModelName.parse(request.name))
        variants = [convert_serving.variant(message, model) for message in request.variants]

        async def effect(records: RolloutRecords) -> pb.SetModelVariantsResponse:
            await self._variants.set(records, model, variants, request.reason, actor())
            found = await find_model(records, model)
            return pb.SetModelVariantsResponse(model=convert_models.model_to_proto(found))

        return await self._mutate("SetModelVariants", request, pb.SetModelVariantsResponse, effect)

    async def ListServingHistory(
        self, request: pb.ListServingHistoryRequest, context: Any
    ) -> pb.ListServingHistoryResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            if request.HasField("at"):
                served = await records.span_at(parent, to_time(request.at, "at"))
                found = [] if served is None else [convert_serving.span_to_proto(parent, served)]
                return pb.ListServingHistoryResponse(spans=found)
            page = await listing.list_spans(records, parent, request.page_size, request.page_token)
        spans = [convert_serving.span_to_proto(parent, span) for _, span in page.items]
        return pb.ListServingHistoryResponse(spans=spans, next_page_token=page.next_page_token)

    async def WatchServing(
        self, request: pb.WatchServingRequest, context: Any
    ) -> AsyncIterator[pb.WatchServingResponse]:
        project = parse_project(request.parent) if request.parent else ""
        await self._gateways.set_project(_gateway_id(request.gateway_id), project)
        async for change in taken(self._desired_state.watch(project), self._idle_seconds):
            yield convert_serving.change_to_proto(change)

    async def GetServingSpec(
        self, request: pb.GetServingSpecRequest, context: Any
    ) -> pb.GetServingSpecResponse:
        name = ReleaseName.parse(request.release)
        async with self._store.reading() as records:
            release = await find_release(records, name)
            version = await find_version(records, VersionName.numbered(name.parent, release.version))
        spec = convert_serving.spec(release, version)
        if convert_serving.spec_digest(release, version) != request.digest:
            raise SpecChanged(
                f"The specification of {name} has another digest here than {request.digest[:80]!r}: "
                "watch again."
            )
        return pb.GetServingSpecResponse(spec=spec)

    async def ReportServing(self, request: pb.ReportServingRequest, context: Any) -> pb.ReportServingResponse:
        check_texts(request)
        gateway = _gateway_id(request.gateway_id)
        if request.leaving:
            await self._gateways.remove(gateway)
        else:
            observed = [convert_serving.observed(model) for model in request.models]
            await self._gateways.heartbeat(gateway, observed)
        return pb.ReportServingResponse()

    async def ListGateways(self, request: pb.ListGatewaysRequest, context: Any) -> pb.ListGatewaysResponse:
        page = await listing.list_gateways(self._gateways, request.page_size, request.page_token)
        gateways = map(convert_serving.gateway_to_proto, page.items)
        return pb.ListGatewaysResponse(gateways=gateways, next_page_token=page.next_page_token)


def _gateway_id(text: str) -> str:
    if not text or len(text) > MAX_GATEWAY_ID or "\0" in text:
        raise InvalidId(
            f"gateway_id must have 1 to {MAX_GATEWAY_ID} characters and no NUL.", field="gateway_id"
        )
    return text
