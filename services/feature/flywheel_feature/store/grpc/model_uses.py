"""Which feature sets model versions use, from the registry service (port: apply.lineage.Models)."""

from __future__ import annotations

import grpc

from flywheel_common.deadline import call_timeout
from flywheel_common.grpc.channel import from_rpc_error
from flywheel_common.names import Pattern
from flywheel_feature.apply.lineage import ModelUse
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.registry.v1.registry_pb2_grpc import RegistryServiceStub

_SET = Pattern("projects/{project}/featureSets/{id}")
_SET_VERSION = Pattern("projects/{project}/featureSets/{id}/versions/{version:int}")
_RETIRED = (model_pb2.STAGE_ARCHIVED, model_pb2.STAGE_REJECTED)
TIMEOUT_SECONDS = 3.0
PAGE = 1000


class RegistryModels:
    """Reads ListFeatureUses page by page; the channel connects with the first call."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def feature_uses(self, project: str) -> list[ModelUse]:
        found: list[ModelUse] = []
        request = registry_pb2.ListFeatureUsesRequest(parent=f"projects/{project}", page_size=PAGE)
        while True:
            try:
                answer = await self._stub.ListFeatureUses(request, timeout=call_timeout(TIMEOUT_SECONDS))
            except grpc.RpcError as error:
                raise from_rpc_error(error, peer="registry") from error
            found += [use for u in answer.uses if (use := _use(u)) is not None]
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token


class NoModels:
    """No uses, for a platform without a registry."""

    async def feature_uses(self, project: str) -> list[ModelUse]:
        return []


def _use(message: registry_pb2.FeatureUse) -> ModelUse | None:
    parts = _SET_VERSION.match(message.feature_set) or _SET.match(message.feature_set)
    if parts is None:
        return None
    version = int(parts["version"]) if "version" in parts else 0
    return ModelUse(message.model_version, str(parts["id"]), version, message.stage in _RETIRED)
