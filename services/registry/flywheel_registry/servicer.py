"""The edge: protobuf in, a use case, protobuf out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from flywheel_common.errors import InvalidArgument
from flywheel_common.names import parse_project
from flywheel_common.paging import cut, decode_token, page_size
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_protos.registry.v1.registry_pb2_grpc import RegistryServiceServicer
from flywheel_registry import convert, convert_evidence, convert_serving
from flywheel_registry.absent import find_evidence, find_model
from flywheel_registry.catalog import PAGE, Catalog
from flywheel_registry.model_methods import ModelMethods
from flywheel_registry.names import EvidenceName, ModelName
from flywheel_registry.ports import Gateways, Store
from flywheel_registry.promotion import Promotions
from flywheel_registry.rollback import Rollbacks
from flywheel_registry.rollout_methods import RolloutMethods
from flywheel_registry.rollouts import Rollouts
from flywheel_registry.transfer import Transfers
from flywheel_registry.watching import ServingBoard

SEEN_SECONDS = 3600.0
"""ListGateways shows those heard of in the last hour."""
MAX_GATEWAY_ID = 200


class RegistryServicer(ModelMethods, RolloutMethods, RegistryServiceServicer):
    """`flywheel.registry.v1.RegistryService`."""

    def __init__(
        self,
        *,
        store: Store,
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
        self._catalog = catalog
        self._transfers = transfers
        self._promotions = promotions
        self._rollouts = rollouts
        self._rollbacks = rollbacks
        self._rollback_wait = rollback_wait_seconds
        self._board = board
        self._gateways = gateways

    # ------------------------------------------------------------------------------------------------- proof

    async def ListServingHistory(
        self, request: pb.ListServingHistoryRequest, context: Any
    ) -> pb.ListServingHistoryResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await self._catalog.list_spans(records, parent, request.page_size, request.page_token)
        spans = [convert_serving.span_to_proto(parent, span) for _, span in page.items]
        return pb.ListServingHistoryResponse(spans=spans, next_page_token=page.next_page_token)

    async def GetEvidence(self, request: pb.GetEvidenceRequest, context: Any) -> pb.GetEvidenceResponse:
        async with self._store.reading() as records:
            evidence = await find_evidence(records, EvidenceName.parse(request.name))
        return pb.GetEvidenceResponse(evidence=convert_evidence.evidence_to_proto(evidence))

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Any
    ) -> pb.ListAuditEntriesResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await self._catalog.list_audit(records, parent, request.page_size, request.page_token)
        return pb.ListAuditEntriesResponse(
            entries=map(convert_evidence.audit_to_proto, page.items), next_page_token=page.next_page_token
        )

    # ---------------------------------------------------------------------------------------------- gateways

    async def WatchServing(
        self, request: pb.WatchServingRequest, context: Any
    ) -> AsyncIterator[pb.WatchServingResponse]:
        project = parse_project(request.parent) if request.parent else ""
        await self._gateways.watching(_gateway_id(request.gateway_id), project)
        async for models in self._board.watch(project):
            yield pb.WatchServingResponse(models=map(convert_serving.serving_to_proto, models))

    async def ReportServing(self, request: pb.ReportServingRequest, context: Any) -> pb.ReportServingResponse:
        convert.check_text(request)
        await self._gateways.heartbeat(
            _gateway_id(request.gateway_id), [convert_serving.observed(model) for model in request.models]
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
            gateways=map(convert_serving.gateway_to_proto, page.items), next_page_token=page.next_page_token
        )


def _gateway_id(text: str) -> str:
    if not text or len(text) > MAX_GATEWAY_ID or "\0" in text:
        raise InvalidArgument(
            f"gateway_id must have 1 to {MAX_GATEWAY_ID} characters.", reason="INVALID_ID", field="gateway_id"
        )
    return text
