"""What the trainer takes from the feature service, over gRPC."""

from __future__ import annotations

import grpc
import pytest

from flywheel_common.errors import FailedPrecondition
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import feature_pb2_grpc
from flywheel_protos.feature.v1 import training_set_pb2 as ts
from flywheel_protos.types.v1 import value_pb2
from flywheel_trainer.store.grpc.feature import GrpcFeature


class Features(feature_pb2_grpc.FeatureServiceServicer):
    """Answers one training set, and keeps what was asked for."""

    def __init__(self, short: bool) -> None:
        self._short = short
        self.asked: list[pb.BuildTrainingSetRequest] = []

    async def GetTrainingSet(
        self, request: pb.GetTrainingSetRequest, context: object
    ) -> pb.GetTrainingSetResponse:
        name = "wind" if self._short else "weather__wind"
        field = value_pb2.Field(name=name, data_type=value_pb2.DATA_TYPE_FLOAT64)
        answer = ts.TrainingSet(name=request.name, schema=[field], short_feature_names=self._short)
        return pb.GetTrainingSetResponse(training_set=answer)

    async def BuildTrainingSet(
        self, request: pb.BuildTrainingSetRequest, context: object
    ) -> pb.BuildTrainingSetResponse:
        self.asked.append(request)
        return pb.BuildTrainingSetResponse(job=pb.Job(name="projects/p/jobs/j"))


@pytest.mark.parametrize("short", [False, True])
async def test_models_are_trained_on_full_feature_names_only(short: bool) -> None:
    features = Features(short)
    server = grpc.aio.server()
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(features, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        peer = GrpcFeature(channel)
        await peer.build("p", "projects/p/featureSets/s", {"file": {"uri": "s3://b/k"}}, "r")
        assert not features.asked[0].short_feature_names
        if short:
            with pytest.raises(FailedPrecondition) as refused:
                await peer.get("projects/p/trainingSets/t")
            assert "SHORT_FEATURE_NAMES" == refused.value.reason
        else:
            found = await peer.get("projects/p/trainingSets/t")
            assert ["weather__wind"] == [c.name for c in found.columns]
    await server.stop(None)
