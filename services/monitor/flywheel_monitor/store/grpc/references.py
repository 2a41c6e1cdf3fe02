"""References of model versions, read from the registry and the feature service over gRPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc

from flywheel_common.errors import FlywheelError, InvalidArgument, NotFound
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_monitor.references.errors import PeerFailed
from flywheel_monitor.references.reference import Reference, reference_from_profile
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_monitor.windows.vectors import projection_name
from flywheel_protos.feature.v1 import feature_pb2, feature_pb2_grpc, training_set_pb2
from flywheel_protos.registry.v1 import registry_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import value_pb2


class GrpcReferences:
    """`ReferenceSource` over gRPC: GetModelVersion, then GetTrainingSet of its training set; GetModel."""

    def __init__(self, registry: grpc.aio.Channel, feature: grpc.aio.Channel) -> None:
        self._registry = registry_pb2_grpc.RegistryServiceStub(registry)
        self._feature = feature_pb2_grpc.FeatureServiceStub(feature)

    async def fetch(self, model_version: str) -> Reference:
        try:
            found_version = await self._call(
                self._registry.GetModelVersion, registry_pb2.GetModelVersionRequest(name=model_version)
            )
        except (NotFound, InvalidArgument) as error:
            return Reference(reason=f"the registry does not know the version: {error.message}")
        version = found_version.model_version
        metrics = dict(version.metrics)
        if not version.training_dataset:
            return Reference(metrics=metrics, reason="the version has no training set")
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
        return replace(
            reference_from_profile(column_references(training_set.profile, inputs)), metrics=metrics
        )

    async def has_model(self, model: str) -> bool:
        try:
            await self._call(self._registry.GetModel, registry_pb2.GetModelRequest(name=model))
        except (NotFound, InvalidArgument):
            return False
        return True

    @staticmethod
    async def _call(method: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
        try:
            return await method(request)
        except grpc.RpcError as error:
            mapped: FlywheelError = from_rpc_error(error)
            if mapped.retryable or isinstance(mapped, (NotFound, InvalidArgument)):
                raise mapped from error
            # A bug of the peer or a missing permission is no reason to lose predictions: they wait until it
            # is fixed.
            raise PeerFailed(
                f"A peer failed with {mapped.reason}: fix the cause, predictions wait until then.",
                peer_reason=mapped.reason,
            ) from error


_CATEGORICAL = {value_pb2.DATA_TYPE_STRING, value_pb2.DATA_TYPE_BOOL}
_NUMERIC = {
    value_pb2.DATA_TYPE_INT64,
    value_pb2.DATA_TYPE_FLOAT32,
    value_pb2.DATA_TYPE_FLOAT64,
    value_pb2.DATA_TYPE_TIMESTAMP,
}


def column_references(
    profile: Sequence[training_set_pb2.ColumnProfile], inputs: set[str]
) -> list[ColumnReference]:
    """The profiles of the model's inputs, of vectors those of their projections; columns of other types
    (lists, blobs) are not watched."""
    found = []
    for p in profile:
        if p.name not in inputs:
            continue
        if p.projections:
            found += [
                replace(
                    _column(one, numeric=True),
                    name=projection_name(p.name, axis),
                    vector=p.name,
                    width=p.vector_size,
                    axis=axis,
                )
                for axis, one in enumerate(p.projections)
            ]
            continue
        numeric = p.data_type in _NUMERIC or (
            p.data_type in _CATEGORICAL and bool(p.bin_counts) and not p.categories
        )
        if numeric or p.data_type in _CATEGORICAL:
            found.append(_column(p, numeric))
    return found


def _column(p: training_set_pb2.ColumnProfile, numeric: bool) -> ColumnReference:
    return ColumnReference(
        name=p.name,
        numeric=numeric,
        counts=tuple(p.bin_counts) if numeric else tuple(p.category_counts),
        null_count=p.null_count,
        edges=tuple(p.edges) if numeric else (),
        categories=() if numeric else tuple(p.categories),
        other_count=0 if numeric else p.other_count,
        mean=p.mean,
        stddev=p.stddev,
        minimum=p.min,
        maximum=p.max,
    )
