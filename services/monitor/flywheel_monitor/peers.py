"""The registry and the feature service, asked for a version's reference over gRPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc

from flywheel_common.errors import FlywheelError, InvalidArgument, NotFound, Unavailable
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_monitor.convert import column_references
from flywheel_monitor.references import Reference, usable
from flywheel_protos.feature.v1 import feature_pb2, feature_pb2_grpc
from flywheel_protos.registry.v1 import registry_pb2, registry_pb2_grpc


class PeerReferences:
    """`ReferenceSource` over gRPC: GetModelVersion, then GetTrainingSet of what it cites."""

    def __init__(self, registry: grpc.aio.Channel, feature: grpc.aio.Channel) -> None:
        self._registry = registry_pb2_grpc.RegistryServiceStub(registry)
        self._feature = feature_pb2_grpc.FeatureServiceStub(feature)

    async def fetch(self, model_version: str) -> Reference:
        try:
            answer = await self._call(
                self._registry.GetModelVersion, registry_pb2.GetModelVersionRequest(name=model_version)
            )
        except (NotFound, InvalidArgument) as error:
            return Reference(reason=f"the registry does not know the version: {error.message}")
        version = answer.model_version
        metrics = dict(version.metrics)
        if not version.training_dataset:
            return Reference(metrics=metrics, reason="the version cites no training set")
        try:
            found = await self._call(
                self._feature.GetTrainingSet, feature_pb2.GetTrainingSetRequest(name=version.training_dataset)
            )
        except (NotFound, InvalidArgument) as error:
            return Reference(metrics=metrics, reason=f"the training set cannot be read: {error.message}")
        training_set = found.training_set
        metrics.setdefault("label_mean", training_set.label_mean)
        inputs = {i.name for i in version.signature.inputs} or {
            p.name for p in training_set.profile if "__" in p.name
        }
        return replace(usable(column_references(training_set.profile, inputs)), metrics=metrics)

    @staticmethod
    async def _call(method: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
        try:
            return await method(request)
        except grpc.RpcError as error:
            mapped: FlywheelError = from_rpc_error(error)
            if mapped.retryable or isinstance(mapped, (NotFound, InvalidArgument)):
                raise mapped from error
            # A bug or a missing permission over there is no fault of the predictions: they wait until it is mended.
            raise Unavailable(
                f"A peer answers {mapped.reason}.", reason="PEER_FAILED", peer_reason=mapped.reason
            ) from error
