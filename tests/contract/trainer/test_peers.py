"""One law for the trainer's peers: in memory, and by RPC to servers that speak the feature service's and the registry's API."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from flywheel_common.deadline import budget, left_seconds
from flywheel_common.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.grpc.channel import channel
from flywheel_protos.feature.v1 import feature_pb2_grpc, training_set_pb2
from flywheel_protos.registry.v1 import registry_pb2_grpc
from flywheel_trainer.evaluation.calibration import Platt
from flywheel_trainer.fakes.feature import MemoryFeature
from flywheel_trainer.fakes.registry import MemoryRegistry, MemoryWeights
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.pipelines.comparison import ChampionModel
from flywheel_trainer.recipes.artifacts import MODEL as MODEL_FILE
from flywheel_trainer.recipes.artifacts import WEIGHTS
from flywheel_trainer.recipes.tabular.dataset import Input
from flywheel_trainer.recipes.tabular.spec import Column
from flywheel_trainer.store.grpc.feature import GrpcFeature
from flywheel_trainer.store.grpc.registry import GrpcRegistry
from flywheel_trainer.store.grpc.weights import RegisteredWeights
from tests.integration.trainer.peer_servers import (
    FEATURE_SET,
    MODEL,
    TRAINING_SET,
    Effects,
    FeaturePeer,
    RegistryPeer,
)
from tests.support.fault_proxy import FaultProxy

SPINE = {"file": {"uri": "s3://b/spine.parquet"}}
URI = "s3://b/sets/one/"
BUILT = TrainingSet(
    TRAINING_SET,
    URI,
    (Column("v__x", "FLOAT64"), Column("v__z", "FLOAT64"), Column("v__c", "STRING"), Column("v__b", "BOOL")),
    7,
    "f" * 64,
    FEATURE_SET,
)


async def serve(stack: AsyncExitStack, add: Any, servicer: Any) -> tuple[grpc.aio.Channel, Callable[[], Any]]:
    """A channel to the servicer, and what makes it go away."""
    server = grpc.aio.server()
    add(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    stack.push_async_callback(server.stop, None)
    way = channel(address, client_name="tests", health_check=False, retries=False)
    return await stack.enter_async_context(way), lambda: server.stop(None)


# --------------------------------------------------------------------------------------------- the feature service


@dataclass
class Features:
    port: Any
    """`pipeline.FeaturePeer` and `jobs.TrainingSets`: it builds BUILT of FEATURE_SET, after one look at the job."""
    fails: Callable[[], None]
    short: Callable[[], None]
    naive: Callable[[], None]
    go: Callable[[], Any]


@pytest.fixture(params=["memory", "grpc"])
async def features(request: pytest.FixtureRequest) -> AsyncIterator[Features]:
    if request.param == "memory":
        memory = MemoryFeature({FEATURE_SET: TRAINING_SET}, looks=1)
        memory.known[TRAINING_SET] = BUILT

        async def go() -> None:
            memory.down = True

        def naive() -> None:
            memory.known[TRAINING_SET] = TrainingSet(**{**BUILT.__dict__, "naive": True})

        def fails() -> None:
            memory.failure = "NO_ROWS: The spine is empty."

        yield Features(memory, fails, lambda: memory.short.add(TRAINING_SET), naive, go)
        return
    served = FeaturePeer(URI, 7, Effects())
    served.looks = 1

    def fails_there() -> None:
        served.failure = ("NO_ROWS", "The spine is empty.")

    def short() -> None:
        served.short = True

    def naive_there() -> None:
        served.mode = training_set_pb2.JOIN_MODE_NAIVE_LATEST

    async with AsyncExitStack() as stack:
        way, away = await serve(stack, feature_pb2_grpc.add_FeatureServiceServicer_to_server, served)
        yield Features(GrpcFeature(way), fails_there, short, naive_there, away)


async def test_a_training_set_is_built_by_a_job_that_names_it_when_it_is_done(features: Features) -> None:
    job = await features.port.build("default", FEATURE_SET, SPINE, "run-1:training_set")
    assert (JobState.RUNNING, "", "") == await features.port.job(job)
    assert (JobState.SUCCEEDED, TRAINING_SET, "") == await features.port.job(job)
    assert BUILT == await features.port.get(TRAINING_SET)


async def test_a_build_that_is_asked_for_again_is_the_same_job_and_another_body_is_refused(
    features: Features,
) -> None:
    first = await features.port.build("default", FEATURE_SET, SPINE, "run-1:training_set")
    assert first == await features.port.build("default", FEATURE_SET, SPINE, "run-1:training_set")
    with pytest.raises(InvalidArgument) as reused:
        await features.port.build("default", FEATURE_SET, {"file": {"uri": "s3://b/o"}}, "run-1:training_set")
    assert "REQUEST_ID_REUSED" == reused.value.reason


async def test_a_build_that_fails_says_why_in_one_line(features: Features) -> None:
    features.fails()
    job = await features.port.build("default", FEATURE_SET, SPINE, "r")
    await features.port.job(job)
    assert (JobState.FAILED, "", "NO_ROWS: The spine is empty.") == await features.port.job(job)


async def test_what_the_feature_service_does_not_know_is_not_found(features: Features) -> None:
    with pytest.raises(NotFound):
        await features.port.build("default", "projects/default/featureSets/none/versions/1", SPINE, "r")
    with pytest.raises(NotFound) as job:
        await features.port.job("projects/default/jobs/none")
    assert "UNKNOWN_JOB" == job.value.reason
    with pytest.raises(NotFound) as unknown:
        await features.port.get("projects/default/trainingSets/none")
    assert "UNKNOWN_TRAINING_SET" == unknown.value.reason


async def test_a_set_with_short_names_is_refused_and_a_naive_one_says_that_it_is(features: Features) -> None:
    features.naive()
    assert (await features.port.get(TRAINING_SET)).naive
    features.short()
    with pytest.raises(FailedPrecondition) as short:
        await features.port.get(TRAINING_SET)
    assert "SHORT_FEATURE_NAMES" == short.value.reason


async def test_a_feature_service_that_is_away_is_unavailable_whatever_is_asked(features: Features) -> None:
    await features.go()
    for call in (
        features.port.build("default", FEATURE_SET, SPINE, "r"),
        features.port.job("projects/default/jobs/build-1"),
        features.port.get(TRAINING_SET),
    ):
        with pytest.raises(Unavailable) as away:
            await call
        assert "FEATURE_UNAVAILABLE" == away.value.reason


# -------------------------------------------------------------------------------------------------- the registry

GRAPH, START = bytes(range(256)) * 5000, b"weights"
"""The graph is larger than one part of an upload."""


def a_version(**other: Any) -> dict[str, Any]:
    files = [(MODEL_FILE, GRAPH), (WEIGHTS, START)]
    return {
        "training_run": "projects/default/runs/run-1",
        "framework": "torch",
        "metrics": {"auc": 0.75},
        "feature_set": FEATURE_SET,
        "training_dataset": TRAINING_SET,
        "inputs": [
            {"name": "v__x", "data_type": "FLOAT64", "vocabulary": []},
            {"name": "v__c", "data_type": "STRING", "vocabulary": ["AA", "BB"]},
        ],
        "artifacts": [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files],
        "golden_rows": 1,
        "golden_inputs": b"i",
        "golden_scores": b"s",
        "parent_version": "",
        "cause_alert": "",
        "pipeline_run": "projects/default/pipelineRuns/run-1",
        **other,
    }


def a_release(version: str, **other: Any) -> dict[str, Any]:
    return {
        "model_version": version,
        "feature_set": FEATURE_SET,
        "slope": 1.5,
        "intercept": -0.25,
        "threshold": 0.5,
        "fallback": None,
        "segment_keys": ["carrier"],
        **other,
    }


@dataclass
class Registry:
    port: Any
    """`pipeline.RegistryPeer`, which knows MODEL."""
    weights: Any
    """`jobs.Weights` of its versions."""
    objects: MemoryObjectStore
    """The bucket "b" of the weights."""
    files: dict[tuple[str, str], bytes]
    refuses: Callable[[], None]
    """From now on the offline gate does."""
    go: Callable[[], Any]


@pytest.fixture(params=["memory", "grpc"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[Registry]:
    objects = MemoryObjectStore()
    if request.param == "memory":
        memory = MemoryRegistry([MODEL])

        async def go() -> None:
            memory.down = True

        def refuses() -> None:
            memory.gate_passes = False

        yield Registry(memory, MemoryWeights(memory, objects, "b"), objects, memory.files, refuses, go)
        return
    served = RegistryPeer(Effects())

    def refuses_there() -> None:
        served.gate_passes = False

    async with AsyncExitStack() as stack:
        way, away = await serve(stack, registry_pb2_grpc.add_RegistryServiceServicer_to_server, served)
        port = GrpcRegistry(way)
        weights = RegisteredWeights(port, objects, "b")
        yield Registry(port, weights, objects, served.files, refuses_there, away)


async def registered(registry: Registry, request_id: str = "r:register") -> str:
    """A version with its files."""
    version: str = await registry.port.create_version(MODEL, a_version(), request_id)
    await registry.port.upload(version, MODEL_FILE, GRAPH)
    await registry.port.upload(version, WEIGHTS, START)
    return version


async def promoted(registry: Registry) -> str:
    """The first champion."""
    version = await registered(registry)
    release = await registry.port.create_release(MODEL, a_release(version), "r:release")
    assert "PROMOTED" == (await registry.port.start_rollout(MODEL, release, "why", "r:rollout"))[1]
    return version


async def test_the_first_rollout_makes_a_champion_and_the_second_a_shadow(registry: Registry) -> None:
    assert await registry.port.champion(MODEL) is None
    version = await promoted(registry)
    inputs = (Input("v__x", "FLOAT64", ()), Input("v__c", "STRING", ("AA", "BB")))
    champion = ChampionModel(version, GRAPH, inputs, Platt(1.5, -0.25))
    assert champion == await registry.port.champion(MODEL)
    second = await registered(registry, "second:register")
    release = await registry.port.create_release(MODEL, a_release(second), "second:release")
    assert "SHADOW" == (await registry.port.start_rollout(MODEL, release, "why", "second:rollout"))[1]
    assert champion == await registry.port.champion(MODEL)


async def test_every_change_that_is_asked_for_again_is_the_first_and_another_body_is_refused(
    registry: Registry,
) -> None:
    port = registry.port
    version = await registered(registry)
    assert version == await registered(registry)
    assert version != await registered(registry, "another")
    gate = (version, {"auc": 0.75}, ["seen"], "why")
    passed = await port.promote_to_staging(*gate, "r:gate")
    registry.refuses()
    assert passed == await port.promote_to_staging(*gate, "r:gate")
    release = await port.create_release(MODEL, a_release(version), "r:release")
    assert release == await port.create_release(MODEL, a_release(version), "r:release")
    assert release != await port.create_release(MODEL, a_release(version), "another")
    rollout = await port.start_rollout(MODEL, release, "why", "r:rollout")
    assert rollout == await port.start_rollout(MODEL, release, "why", "r:rollout")
    for call in (
        port.create_version(MODEL, a_version(framework="other"), "r:register"),
        port.promote_to_staging(version, {"auc": 0.5}, ["seen"], "why", "r:gate"),
        port.create_release(MODEL, a_release(version, threshold=0.25), "r:release"),
        port.start_rollout(MODEL, release, "another reason", "r:rollout"),
    ):
        with pytest.raises(InvalidArgument) as reused:
            await call
        assert "REQUEST_ID_REUSED" == reused.value.reason


async def test_the_gate_says_what_it_found_and_a_version_it_refused_gets_no_release(
    registry: Registry,
) -> None:
    good, bad = await registered(registry), await registered(registry, "another")
    passed, findings = await registry.port.promote_to_staging(good, {"auc": 0.75}, [], "why", "good")
    assert (True, 1) == (passed, len(findings))
    registry.refuses()
    passed, findings = await registry.port.promote_to_staging(bad, {"auc": 0.5}, [], "why", "bad")
    assert (False, 1) == (passed, len(findings))
    with pytest.raises(FailedPrecondition) as refused:
        await registry.port.create_release(MODEL, a_release(bad), "r")
    assert "REJECTED_VERSION" == refused.value.reason


async def test_what_the_registry_does_not_know_is_not_found(registry: Registry) -> None:
    none = f"{MODEL}/versions/99"
    for call in (
        registry.port.champion("projects/default/models/none"),
        registry.port.create_version("projects/default/models/none", a_version(), "r"),
        registry.port.upload(none, MODEL_FILE, GRAPH),
        registry.port.promote_to_staging(none, {}, [], "", "r"),
        registry.port.create_release(MODEL, a_release(none), "r"),
        registry.port.start_rollout(MODEL, f"{MODEL}/releases/99", "why", "r"),
    ):
        with pytest.raises(NotFound):
            await call


async def test_other_bytes_than_declared_are_taken_neither_to_the_registry_nor_from_it(
    registry: Registry,
) -> None:
    version = await promoted(registry)
    with pytest.raises(DataLoss) as sent:
        await registry.port.upload(version, MODEL_FILE, GRAPH[:-1])
    assert "DIGEST_MISMATCH" == sent.value.reason
    assert registry.files[version, MODEL_FILE] == GRAPH
    registry.files[version, MODEL_FILE] = GRAPH[:-1] + b"?"
    with pytest.raises(DataLoss) as received:
        await registry.port.champion(MODEL)
    assert "DIGEST_MISMATCH" == received.value.reason


async def test_a_champion_whose_file_is_gone_is_not_found(registry: Registry) -> None:
    version = await promoted(registry)
    del registry.files[version, MODEL_FILE]
    with pytest.raises(NotFound):
        await registry.port.champion(MODEL)


async def test_a_registry_that_is_away_is_unavailable_whatever_is_asked(registry: Registry) -> None:
    version = await promoted(registry)
    await registry.go()
    for call in (
        registry.port.champion(MODEL),
        registry.port.create_version(MODEL, a_version(), "r"),
        registry.port.upload(version, MODEL_FILE, GRAPH),
        registry.port.promote_to_staging(version, {}, [], "", "r"),
        registry.port.create_release(MODEL, a_release(version), "r"),
        registry.port.start_rollout(MODEL, f"{MODEL}/releases/1", "why", "r"),
        registry.weights.of(version),
    ):
        with pytest.raises(Unavailable) as away:
            await call
        assert "REGISTRY_UNAVAILABLE" == away.value.reason


async def test_weights_are_brought_here_under_their_digest_and_once(registry: Registry) -> None:
    version = await registered(registry)
    digest = hashlib.sha256(START).hexdigest()
    found = (f"s3://b/artifacts/{digest[:2]}/{digest}", digest)
    assert found == await registry.weights.of(version)
    assert START == await registry.objects.get(f"artifacts/{digest[:2]}/{digest}")
    del registry.files[version, WEIGHTS]
    assert found == await registry.weights.of(version)


async def test_a_version_has_weights_or_none_or_is_not_known_and_other_bytes_are_refused(
    registry: Registry,
) -> None:
    graph = (MODEL_FILE, len(GRAPH), hashlib.sha256(GRAPH).hexdigest())
    without = await registry.port.create_version(MODEL, a_version(artifacts=[graph]), "without")
    assert await registry.weights.of(without) is None
    with pytest.raises(NotFound) as unknown:
        await registry.weights.of(f"{MODEL}/versions/99")
    assert "UNKNOWN_MODEL_VERSION" == unknown.value.reason
    version = await registered(registry)
    registry.files[version, WEIGHTS] = b"other"
    with pytest.raises(DataLoss) as other:
        await registry.weights.of(version)
    assert "DIGEST_MISMATCH" == other.value.reason
    assert [] == [info async for info in registry.objects.list()]


# -------------------------------------------------------------------------------------------- peers that hang


async def test_a_peer_that_hangs_is_unavailable_by_its_name_before_the_deadline_and_heard_when_it_is_back() -> (
    None
):
    """In memory nothing hangs."""
    server = grpc.aio.server()
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(FeaturePeer(URI, 7, Effects()), server)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryPeer(Effects()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with (
        FaultProxy("127.0.0.1", port) as proxy,
        channel(proxy.address, client_name="tests", health_check=False) as way,
    ):
        feature, registry = GrpcFeature(way), GrpcRegistry(way)
        weights = RegisteredWeights(registry, MemoryObjectStore(), "b")
        name = await registry.create_version(MODEL, a_version(), "r")
        await registry.upload(name, WEIGHTS, START)
        version = await registry.version(name)
        calls: dict[Callable[[], Awaitable[Any]], str] = {
            lambda: feature.get(TRAINING_SET): "FEATURE_UNAVAILABLE",
            lambda: feature.build("default", FEATURE_SET, SPINE, "r"): "FEATURE_UNAVAILABLE",
            lambda: registry.champion(MODEL): "REGISTRY_UNAVAILABLE",
            lambda: registry.download(version, WEIGHTS): "REGISTRY_UNAVAILABLE",
            lambda: registry.upload(name, WEIGHTS, START): "REGISTRY_UNAVAILABLE",
            lambda: weights.of(name): "REGISTRY_UNAVAILABLE",
        }
        proxy.stall()
        for call, reason in calls.items():
            with budget(1.0):
                with pytest.raises(Unavailable) as hangs:
                    await call()
                left = left_seconds()
            assert reason == hangs.value.reason
            assert left is not None and left > 0
        proxy.heal()
        with budget(10.0):
            assert await registry.download(version, WEIGHTS) == START
            assert BUILT == await feature.get(TRAINING_SET)
    await server.stop(None)
