"""Contract tests for the trainer's view of the registry: in memory, and over gRPC."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from flywheel_common.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.signature import OutputSpec
from flywheel_common.storage.errors import S3Unavailable
from flywheel_job.artifacts import MODEL as MODEL_FILE
from flywheel_job.artifacts import WEIGHTS
from flywheel_protos.registry.v1 import registry_pb2_grpc
from flywheel_trainer.fakes.registry import MemoryRegistry, MemoryWeights
from flywheel_trainer.jobs.errors import UnknownModelVersion
from flywheel_trainer.jobs.ports import Weights
from flywheel_trainer.pipelines.ports import Champion, RegistryPeer, VersionOrigin
from flywheel_trainer.store.grpc.registry import GrpcRegistry
from flywheel_trainer.store.grpc.weights import RegisteredWeights
from tests.support.peers.trainer import FEATURE_SET, MODEL, TRAINING_SET, RegistryServer, serve
from tests.support.pieces import pieces

GRAPH = bytes(range(256)) * 5000
"""Larger than one part of an upload."""
WEIGHTS_CONTENT = b"weights"


def model_version(**fields: Any) -> dict[str, Any]:
    files = [(MODEL_FILE, GRAPH), (WEIGHTS, WEIGHTS_CONTENT)]
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
        "output": OutputSpec(),
        "artifacts": [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files],
        "golden_rows": 1,
        "golden_inputs": b"i",
        "golden_scores": b"s",
        "parent_version": "",
        "tags": {},
        "cause_alert": "",
        "pipeline_run": "projects/default/pipelineRuns/run-1",
        **fields,
    }


def release_of(version: str, **fields: Any) -> dict[str, Any]:
    return {
        "model_version": version,
        "feature_set": FEATURE_SET,
        "calibration": {"platt": {"slope": 1.5, "intercept": -0.25}},
        "threshold": 0.5,
        "fallback": None,
        "segment_keys": ["carrier"],
        **fields,
    }


@dataclass
class Registry:
    peer: RegistryPeer
    """A registry with MODEL."""
    weights: Weights
    """The weights of its versions."""
    objects: MemoryObjectStore
    """The bucket "b" to which `weights` downloads."""
    files: dict[tuple[str, str], bytes]
    close_gate: Callable[[], None]
    """Lets the offline gate fail from now on."""
    shut_down: Callable[[], Awaitable[None]]

    async def register(self, request_id: str = "r:register") -> str:
        """Create a version and upload its files."""
        version = await self.peer.create_version(MODEL, model_version(), request_id)
        await self.peer.upload(version, MODEL_FILE, pieces(GRAPH))
        await self.peer.upload(version, WEIGHTS, pieces(WEIGHTS_CONTENT))
        return version

    async def promote(self) -> str:
        """Create the first champion."""
        version = await self.register()
        release = await self.peer.create_release(MODEL, release_of(version), "r:release")
        _, state = await self.peer.start_rollout(MODEL, release, "why", "r:rollout")
        assert "PENDING_LOAD" == state
        return version


def memory_registry() -> Registry:
    memory, objects = MemoryRegistry([MODEL]), MemoryObjectStore()

    def close_gate() -> None:
        memory.gate_passes = False

    async def shut_down() -> None:
        memory.down = True

    weights = MemoryWeights(memory, objects, "b")
    return Registry(memory, weights, objects, memory.files, close_gate, shut_down)


async def grpc_registry(stack: AsyncExitStack) -> Registry:
    server, objects = RegistryServer(), MemoryObjectStore()

    def close_gate() -> None:
        server.gate_passes = False

    channel, shut_down = await serve(stack, registry_pb2_grpc.add_RegistryServiceServicer_to_server, server)
    peer = GrpcRegistry(channel)
    weights = RegisteredWeights(peer, objects, "b")
    return Registry(peer, weights, objects, server.files, close_gate, shut_down)


@pytest.fixture(params=["memory", "grpc"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[Registry]:
    async with AsyncExitStack() as stack:
        yield memory_registry() if request.param == "memory" else await grpc_registry(stack)


async def test_the_first_release_serves_and_the_next_one_waits(registry: Registry) -> None:
    assert await registry.peer.champion(MODEL) is None
    version = await registry.promote()
    champion = Champion(version, f"{MODEL}/releases/1")
    assert champion == await registry.peer.champion(MODEL)
    second = await registry.register("second:register")
    release = await registry.peer.create_release(MODEL, release_of(second), "second:release")
    _, state = await registry.peer.start_rollout(MODEL, release, "why", "second:rollout")
    assert "PENDING_LOAD" == state
    assert champion == await registry.peer.champion(MODEL)


async def test_repeated_mutations_return_the_first_result(registry: Registry) -> None:
    peer = registry.peer
    version = await registry.register()
    assert version == await registry.register()
    assert version != await registry.register("another")
    evidence = (version, {"auc": 0.75}, ["seen"], "why")
    passed = await peer.promote_to_staging(*evidence, "r:gate")
    registry.close_gate()
    assert passed == await peer.promote_to_staging(*evidence, "r:gate")
    release = await peer.create_release(MODEL, release_of(version), "r:release")
    assert release == await peer.create_release(MODEL, release_of(version), "r:release")
    assert release != await peer.create_release(MODEL, release_of(version), "another")
    rollout = await peer.start_rollout(MODEL, release, "why", "r:rollout")
    assert rollout == await peer.start_rollout(MODEL, release, "why", "r:rollout")
    for call in (
        peer.create_version(MODEL, model_version(framework="other"), "r:register"),
        peer.promote_to_staging(version, {"auc": 0.5}, ["seen"], "why", "r:gate"),
        peer.create_release(MODEL, release_of(version, threshold=0.25), "r:release"),
        peer.start_rollout(MODEL, release, "another reason", "r:rollout"),
    ):
        with pytest.raises(InvalidArgument) as reused:
            await call
        assert "REQUEST_ID_REUSED" == reused.value.reason


async def test_a_version_that_the_gate_rejected_is_not_released(registry: Registry) -> None:
    good, bad = await registry.register(), await registry.register("another")
    passed, findings = await registry.peer.promote_to_staging(good, {"auc": 0.75}, [], "why", "good")
    assert (True, 1) == (passed, len(findings))
    registry.close_gate()
    passed, findings = await registry.peer.promote_to_staging(bad, {"auc": 0.5}, [], "why", "bad")
    assert (False, 1) == (passed, len(findings))
    with pytest.raises(FailedPrecondition) as rejected:
        await registry.peer.create_release(MODEL, release_of(bad), "r")
    assert "REJECTED_VERSION" == rejected.value.reason


async def test_the_origin_of_a_version_is_what_was_registered(registry: Registry) -> None:
    parent = f"{MODEL}/versions/7"
    version = await registry.peer.create_version(MODEL, model_version(parent_version=parent), "r")
    assert VersionOrigin(
        "projects/default/runs/run-1", TRAINING_SET, "projects/default/pipelineRuns/run-1", parent
    ) == await registry.peer.origin(version)


async def test_unknown_resources_are_not_found(registry: Registry) -> None:
    none = f"{MODEL}/versions/99"
    for call in (
        registry.peer.champion("projects/default/models/none"),
        registry.peer.create_version("projects/default/models/none", model_version(), "r"),
        registry.peer.origin(none),
        registry.peer.upload(none, MODEL_FILE, pieces(GRAPH)),
        registry.peer.promote_to_staging(none, {}, [], "", "r"),
        registry.peer.create_release(MODEL, release_of(none), "r"),
        registry.peer.start_rollout(MODEL, f"{MODEL}/releases/99", "why", "r"),
    ):
        with pytest.raises(NotFound):
            await call


async def test_bytes_with_another_digest_are_not_sent(registry: Registry) -> None:
    version = await registry.promote()
    with pytest.raises(DataLoss) as sent:
        await registry.peer.upload(version, MODEL_FILE, pieces(GRAPH[:-1]))
    assert "DIGEST_MISMATCH" == sent.value.reason
    assert registry.files[version, MODEL_FILE] == GRAPH


async def test_a_file_that_cannot_be_read_to_its_end_is_not_stored(registry: Registry) -> None:
    version = await registry.peer.create_version(MODEL, model_version(), "r")
    broken = pieces(GRAPH[:-1], ends_with=S3Unavailable("gone"))
    with pytest.raises(S3Unavailable):
        await registry.peer.upload(version, MODEL_FILE, broken)
    assert (version, MODEL_FILE) not in registry.files


async def test_every_method_raises_unavailable_while_the_service_is_down(registry: Registry) -> None:
    version = await registry.promote()
    await registry.shut_down()
    for call in (
        registry.peer.champion(MODEL),
        registry.peer.create_version(MODEL, model_version(), "r"),
        registry.peer.origin(version),
        registry.peer.upload(version, MODEL_FILE, pieces(GRAPH)),
        registry.peer.promote_to_staging(version, {}, [], "", "r"),
        registry.peer.create_release(MODEL, release_of(version), "r"),
        registry.peer.start_rollout(MODEL, f"{MODEL}/releases/1", "why", "r"),
        registry.weights.of(version),
    ):
        with pytest.raises(Unavailable) as unavailable:
            await call
        assert "REGISTRY_UNAVAILABLE" == unavailable.value.reason


async def test_weights_are_downloaded_once_under_their_digest(registry: Registry) -> None:
    version = await registry.register()
    digest = hashlib.sha256(WEIGHTS_CONTENT).hexdigest()
    found = (f"s3://b/artifacts/{digest[:2]}/{digest}", digest)
    assert found == await registry.weights.of(version)
    assert WEIGHTS_CONTENT == await registry.objects.get(f"artifacts/{digest[:2]}/{digest}")
    del registry.files[version, WEIGHTS]
    assert found == await registry.weights.of(version)


async def test_a_version_can_lack_weights_or_be_unknown(registry: Registry) -> None:
    graph = (MODEL_FILE, len(GRAPH), hashlib.sha256(GRAPH).hexdigest())
    without = await registry.peer.create_version(MODEL, model_version(artifacts=[graph]), "without")
    assert await registry.weights.of(without) is None
    with pytest.raises(UnknownModelVersion):
        await registry.weights.of(f"{MODEL}/versions/99")


async def test_weights_with_another_digest_are_rejected(registry: Registry) -> None:
    version = await registry.register()
    registry.files[version, WEIGHTS] = b"other"
    with pytest.raises(DataLoss) as other:
        await registry.weights.of(version)
    assert "DIGEST_MISMATCH" == other.value.reason
    assert [] == [info async for info in registry.objects.list()]
