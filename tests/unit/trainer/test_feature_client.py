"""The client of the feature service asks for and accepts full feature names only."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from flywheel_protos.feature.v1 import feature_pb2_grpc
from flywheel_trainer.jobs.errors import ShortFeatureNames
from flywheel_trainer.store.grpc.feature import GrpcFeature
from tests.support.peers.trainer import FEATURE_SET, TRAINING_SET, FeatureServer, serve


@pytest.mark.parametrize("short", [False, True])
async def test_models_are_trained_on_full_feature_names_only(short: bool) -> None:
    server = FeatureServer("s3://b/k")
    server.short = short
    async with AsyncExitStack() as stack:
        add = feature_pb2_grpc.add_FeatureServiceServicer_to_server
        channel, _ = await serve(stack, add, server)
        client = GrpcFeature(channel)
        await client.build("default", FEATURE_SET, {"file": {"uri": "s3://b/k"}}, "r")
        assert not server.build_requests[0].short_feature_names
        if short:
            with pytest.raises(ShortFeatureNames):
                await client.get(TRAINING_SET)
        else:
            found = await client.get(TRAINING_SET)
            assert ["v__x", "v__z", "v__c", "v__b"] == [c.name for c in found.columns]
