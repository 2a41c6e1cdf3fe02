"""Contract tests of reference sources: in memory, and the registry and the feature service over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.channel import channel
from flywheel_monitor.fakes.references import MemoryReferences
from flywheel_monitor.references.ports import ReferenceSource
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.store.grpc.references import GrpcReferences
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_protos.feature.v1 import training_set_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.monitor import MODEL, version_name
from tests.support.peers.monitor import peers

GOOD, WITHOUT_SET, UNKNOWN_SET, MALFORMED, UNKNOWN = (version_name(n) for n in (1, 2, 3, 4, 9))
NUMERIC = ColumnReference(
    "v__x", True, (5, 4), 1, edges=(0.5,), mean=0.25, stddev=2.0, minimum=-3.0, maximum=4.0
)
CATEGORICAL = ColumnReference("v__c", False, (6, 3), categories=("AA", "BB"), other_count=1)


def training_set(name: str, bin_counts: list[int]) -> training_set_pb2.TrainingSet:
    numeric = training_set_pb2.ColumnProfile(
        name="v__x",
        data_type=value_pb2.DATA_TYPE_FLOAT64,
        null_count=1,
        mean=0.25,
        stddev=2.0,
        min=-3.0,
        max=4.0,
        edges=[0.5],
        bin_counts=bin_counts,
    )
    categorical = training_set_pb2.ColumnProfile(
        name="v__c",
        data_type=value_pb2.DATA_TYPE_STRING,
        categories=["AA", "BB"],
        category_counts=[6, 3],
        other_count=1,
    )
    unused = training_set_pb2.ColumnProfile(
        name="v__not_an_input", data_type=value_pb2.DATA_TYPE_FLOAT64, edges=[0.0], bin_counts=[1, 2]
    )
    profile = [unused, numeric, categorical]
    return training_set_pb2.TrainingSet(name=name, label_mean=0.25, profile=profile)


@dataclass
class Source:
    references: ReferenceSource
    stop: Callable[[], Awaitable[None]]


@pytest.fixture(params=["memory", "grpc"])
async def source(request: pytest.FixtureRequest) -> AsyncIterator[Source]:
    if request.param == "memory":
        memory = MemoryReferences()
        metrics = {"auc": 0.75, "label_mean": 0.25}
        memory.known = {
            GOOD: Reference((NUMERIC, CATEGORICAL), metrics),
            WITHOUT_SET: Reference(metrics={"auc": 0.75}, reason="the version has no training set"),
            UNKNOWN_SET: Reference(metrics={"auc": 0.75}, reason="the training set is not known"),
            MALFORMED: Reference(metrics=metrics, reason="the profile is malformed"),
        }
        memory.models = {MODEL}

        async def stop() -> None:
            memory.down = True

        yield Source(memory, stop)
        return
    async with peers() as found:
        sets = {GOOD: "good", WITHOUT_SET: "", UNKNOWN_SET: "none", MALFORMED: "malformed"}
        for name, cited in sets.items():
            found.registry.add(name, cited, ["v__x", "v__c"], {"auc": 0.75})
        found.feature.sets["good"] = training_set("good", [5, 4])
        found.feature.sets["malformed"] = training_set("malformed", [9])
        async with channel(
            found.address, client_name="monitor", health_check=False, default_timeout_seconds=5
        ) as peer:
            yield Source(GrpcReferences(peer, peer), lambda: found.server.stop(None))


async def test_a_reference_has_the_profile_of_the_inputs_and_the_metrics(source: Source) -> None:
    for _ in range(2):
        found = await source.references.fetch(GOOD)
        assert {"v__x": NUMERIC, "v__c": CATEGORICAL} == {c.name: c for c in found.columns}
        assert ({"auc": 0.75, "label_mean": 0.25}, "") == (dict(found.metrics), found.reason)


@pytest.mark.parametrize("version", [WITHOUT_SET, UNKNOWN_SET, MALFORMED, UNKNOWN])
async def test_without_a_usable_training_set_there_is_a_reason(source: Source, version: str) -> None:
    found = await source.references.fetch(version)
    assert ((), "") == (found.columns, found.hash)
    assert found.reason
    assert found.metrics.get("auc") == (None if version == UNKNOWN else 0.75)


async def test_an_unavailable_peer_is_a_retryable_error(source: Source) -> None:
    await source.stop()
    for call in (source.references.fetch(GOOD), source.references.has_model(MODEL)):
        with pytest.raises(FlywheelError) as caught:
            await call
        assert caught.value.retryable


async def test_a_model_exists_if_the_registry_has_it(source: Source) -> None:
    found = [
        await source.references.has_model(name) for name in (MODEL, f"{MODEL}x", "projects/q/models/late")
    ]
    assert [True, False, False] == found
