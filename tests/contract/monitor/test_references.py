"""One law for what versions are compared with: out of memory, and asked of the registry and the feature service through gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.channel import channel
from flywheel_monitor.bins import ColumnReference
from flywheel_monitor.memory import MemoryReferences
from flywheel_monitor.peers import PeerReferences
from flywheel_monitor.references import Reference, ReferenceSource
from flywheel_protos.feature.v1 import feature_pb2, feature_pb2_grpc, training_set_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import value_pb2

VERSION = "projects/p/models/late/versions/1"
WITHOUT_SET, UNKNOWN_SET, MALFORMED = (f"projects/p/models/late/versions/{n}" for n in (2, 3, 4))
NUMERIC = ColumnReference(
    "v__x", True, (5, 4), 1, edges=(0.5,), mean=0.25, stddev=2.0, minimum=-3.0, maximum=4.0
)
CATEGORICAL = ColumnReference("v__c", False, (6, 3), categories=("AA", "BB"), other_count=1)


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Versions of which only the first has a training set of use."""

    async def GetModelVersion(self, request: Any, context: Any) -> registry_pb2.GetModelVersionResponse:
        sets = {VERSION: "good", WITHOUT_SET: "", UNKNOWN_SET: "none", MALFORMED: "malformed"}
        if request.name not in sets:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        inputs = [model_pb2.SignatureInput(name=n) for n in ("v__x", "v__c")]
        return registry_pb2.GetModelVersionResponse(
            model_version=model_pb2.ModelVersion(
                name=request.name,
                training_dataset=sets[request.name],
                metrics={"auc": 0.75},
                signature=model_pb2.Signature(inputs=inputs),
            )
        )


class Feature(feature_pb2_grpc.FeatureServiceServicer):
    """A good training set and one whose profile has a bin too few."""

    async def GetTrainingSet(self, request: Any, context: Any) -> feature_pb2.GetTrainingSetResponse:
        if request.name == "none":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such training set")
        numeric = training_set_pb2.ColumnProfile(
            name="v__x", data_type=value_pb2.DATA_TYPE_FLOAT64, null_count=1, mean=0.25, stddev=2.0, min=-3.0, max=4.0,
            edges=[0.5], bin_counts=[5, 4] if request.name == "good" else [9],
        )  # fmt: skip
        categorical = training_set_pb2.ColumnProfile(
            name="v__c", data_type=value_pb2.DATA_TYPE_STRING, categories=["AA", "BB"], category_counts=[6, 3], other_count=1
        )  # fmt: skip
        unused = training_set_pb2.ColumnProfile(
            name="v__not_an_input", data_type=value_pb2.DATA_TYPE_FLOAT64, edges=[0.0], bin_counts=[1, 2]
        )
        return feature_pb2.GetTrainingSetResponse(
            training_set=training_set_pb2.TrainingSet(
                name=request.name, label_mean=0.25, profile=[unused, numeric, categorical]
            )
        )


@dataclass
class Asked:
    source: ReferenceSource
    go_away: Callable[[], Any]


@pytest.fixture(params=["memory", "grpc"])
async def asked(request: pytest.FixtureRequest) -> AsyncIterator[Asked]:
    if request.param == "memory":
        memory = MemoryReferences()
        metrics = {"auc": 0.75, "label_mean": 0.25}
        memory.known = {
            VERSION: Reference((NUMERIC, CATEGORICAL), metrics),
            WITHOUT_SET: Reference(metrics={"auc": 0.75}, reason="the version cites no training set"),
            UNKNOWN_SET: Reference(metrics={"auc": 0.75}, reason="the training set is not known"),
            MALFORMED: Reference(metrics=metrics, reason="the profile is malformed"),
        }

        async def away() -> None:
            memory.away = True

        yield Asked(memory, away)
        return
    async with AsyncExitStack() as stack:
        server = grpc.aio.server()
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(Registry(), server)
        feature_pb2_grpc.add_FeatureServiceServicer_to_server(Feature(), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        stack.push_async_callback(server.stop, None)
        peers = channel(address, client_name="monitor", health_check=False, default_timeout_seconds=5)
        stack.push_async_callback(peers.close)
        yield Asked(PeerReferences(peers, peers), lambda: server.stop(None))


async def test_a_version_is_compared_with_the_profile_of_its_inputs_and_its_metrics(asked: Asked) -> None:
    for _ in range(2):
        found = await asked.source.fetch(VERSION)
        assert {"v__x": NUMERIC, "v__c": CATEGORICAL} == {c.name: c for c in found.columns}
        assert ({"auc": 0.75, "label_mean": 0.25}, "") == (dict(found.metrics), found.reason)


@pytest.mark.parametrize(
    "version", [WITHOUT_SET, UNKNOWN_SET, MALFORMED, "projects/p/models/late/versions/9"]
)
async def test_a_version_without_a_training_set_of_use_has_no_columns_and_says_why(
    asked: Asked, version: str
) -> None:
    found = await asked.source.fetch(version)
    assert ((), "") == (found.columns, found.hash)
    assert found.reason
    assert found.metrics.get("auc") == (None if version.endswith("9") else 0.75)


async def test_while_nobody_answers_it_may_be_asked_again(asked: Asked) -> None:
    await asked.go_away()
    with pytest.raises(FlywheelError) as away:
        await asked.source.fetch(VERSION)
    assert away.value.retryable
