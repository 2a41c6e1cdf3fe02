"""`FeatureSets` of the feature service."""

from __future__ import annotations

import grpc

from flywheel_protos.feature.v1 import feature_pb2, feature_pb2_grpc
from flywheel_trainer.jobs.scoring_ports import SetFields
from flywheel_trainer.store.grpc.calls import response_of
from flywheel_trainer.store.grpc.feature import PEER


class GrpcFeatureSets:
    """`FeatureSets` over the gRPC stub."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = feature_pb2_grpc.FeatureServiceStub(channel)

    async def fields(self, feature_set: str) -> SetFields:
        request = feature_pb2.GetFeatureSetRequest(name=feature_set)
        found = (await response_of(PEER, self._stub.GetFeatureSet(request))).feature_set
        keys = tuple(field.name for field in found.join_keys)
        fields = tuple(field.name for field in found.request_fields if field.name not in keys)
        return SetFields(keys, fields)
