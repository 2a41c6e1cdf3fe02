"""The feature service over gRPC: the features of feature sets."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from flywheel_common.deadline import call_timeout
from flywheel_common.errors import FlywheelError, InvalidArgument, NotFound, Unavailable
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import feature_pb2_grpc
from flywheel_registry.artifacts.graph import Feature


class GrpcFeatureSets:
    """`artifacts.FeatureSets`."""

    def __init__(self, channel: grpc.aio.Channel, timeout_seconds: float) -> None:
        self._stub = feature_pb2_grpc.FeatureServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def features(self, feature_set: str) -> Mapping[str, Feature] | None:
        try:
            answer = await self._stub.GetFeatureSet(
                pb.GetFeatureSetRequest(name=feature_set), timeout=call_timeout(self._timeout_seconds)
            )
        except grpc.RpcError as error:
            mapped: FlywheelError = from_rpc_error(error)
            # A malformed name is the name of no feature set.
            if isinstance(mapped, (NotFound, InvalidArgument)):
                return None
            raise Unavailable(
                f"The feature service does not answer ({mapped.reason}): the version is checked later."
            ) from error
        return {f.name: Feature(int(f.data_type), f.vector_size) for f in answer.feature_set.schema}
