"""Calls of a hanging service fail with the name of the service before their deadline."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from flywheel_common.deadline import budget, left_seconds
from flywheel_common.errors import Unavailable
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.grpc.channel import channel
from flywheel_job.artifacts import WEIGHTS
from flywheel_protos.registry.v1 import model_pb2
from flywheel_trainer.store.grpc.feature import GrpcFeature
from flywheel_trainer.store.grpc.registry import GrpcRegistry
from flywheel_trainer.store.grpc.weights import RegisteredWeights
from tests.support.fault_proxy import FaultProxy
from tests.support.peers.trainer import FEATURE_SET, MODEL, TRAINING_SET, serve_peers
from tests.support.pieces import pieces

SPINE = {"file": {"uri": "s3://b/spine.parquet"}}
CONTENT = b"weights"


async def test_a_hanging_peer_is_unavailable_until_it_answers_again() -> None:
    async with AsyncExitStack() as stack:
        peers = await serve_peers(stack, "s3://b/sets/one/", 7)
        host, _, port = peers.address.rpartition(":")
        proxy = await stack.enter_async_context(FaultProxy(host, int(port)))
        connection = channel(proxy.address, client_name="tests", health_check=False)
        await stack.enter_async_context(connection)
        feature, registry = GrpcFeature(connection), GrpcRegistry(connection)
        weights = RegisteredWeights(registry, MemoryObjectStore(), "b")
        name = f"{MODEL}/versions/1"
        artifact = model_pb2.Artifact(
            name=WEIGHTS, size_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()
        )
        peers.registry.versions[name] = model_pb2.ModelVersion(name=name, artifacts=[artifact])
        await registry.upload(name, WEIGHTS, pieces(CONTENT))
        version = await registry.version(name)
        calls: dict[Callable[[], Awaitable[Any]], str] = {
            lambda: feature.get(TRAINING_SET): "FEATURE_UNAVAILABLE",
            lambda: feature.build("default", FEATURE_SET, SPINE, "r"): "FEATURE_UNAVAILABLE",
            lambda: registry.champion(MODEL): "REGISTRY_UNAVAILABLE",
            lambda: registry.download(version, WEIGHTS): "REGISTRY_UNAVAILABLE",
            lambda: registry.upload(name, WEIGHTS, pieces(CONTENT)): "REGISTRY_UNAVAILABLE",
            lambda: weights.of(name): "REGISTRY_UNAVAILABLE",
        }
        proxy.stall()
        for call, reason in calls.items():
            with budget(1.0):
                with pytest.raises(Unavailable) as unavailable:
                    await call()
                left = left_seconds()
            assert reason == unavailable.value.reason
            assert left is not None
            assert left > 0
        proxy.heal()
        with budget(10.0):
            assert await registry.download(version, WEIGHTS) == CONTENT
            assert TRAINING_SET == (await feature.get(TRAINING_SET)).name
