"""Contract tests of the registry, in memory and over gRPC to a stand-in with its API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from flywheel_common.errors import DataLoss, DeadlineExceeded, FlywheelError, NotFound, Unavailable
from flywheel_common.grpc.channel import channel
from flywheel_inference.fakes.registry import MemoryRegistry
from flywheel_inference.releases.release import ArtifactSpec
from flywheel_inference.serving.observed_state import ObservedModel
from flywheel_inference.store.grpc.registry import GrpcRegistry, to_observed
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from tests.support.builders.inference import MODEL
from tests.support.eventually import eventually
from tests.support.peers.inference import RegistryServicer, registry_server

TIMEOUT = 10.0
VERSION = f"{MODEL}/versions/1"


@dataclass
class Adapter:
    port: Any
    """`serving.ServingRegistry` and `models.ArtifactSource`."""
    want: Callable[[int], None]
    """Sets the desired generation."""
    artifacts: dict[tuple[str, str], bytes]
    specs: dict[str, bytes]
    """By digest."""
    reports: Callable[[], list[list[Any]]]
    """The models of each report, as protobuf."""
    left: Callable[[], bool]
    """Whether the last call told that the gateway left."""
    stop: Callable[[], Awaitable[None]]
    start: Callable[[], Awaitable[None]]


@pytest.fixture(params=["memory", "grpc"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
    """A registry that wants generation 1."""
    if request.param == "memory":
        memory = MemoryRegistry(state(1))

        async def stop() -> None:
            memory.set_down(True)

        async def start() -> None:
            memory.set_down(False)

        yield Adapter(
            memory,
            lambda generation: memory.want(state(generation)),
            memory.artifacts,
            memory.specs,
            lambda: [[to_observed(model) for model in report] for report in memory.reports],
            lambda: memory.left,
            stop,
            start,
        )
        return
    servicer = RegistryServicer()
    servicer.want()
    server = registry_server(servicer)
    await server.start()
    async with channel(server.address, client_name="tests", health_check=False, retries=False) as client:

        def want(generation: int) -> None:
            assert generation == servicer.want()

        yield Adapter(
            GrpcRegistry(client, "gateway-test", ""),
            want,
            servicer.artifacts,
            servicer.specs,
            lambda: [list(report.models) for report in servicer.reports],
            lambda: servicer.reports[-1].leaving,
            server.stop,
            server.start,
        )
    await server.stop()


def state(generation: int) -> bytes:
    """A serialized desired state with this generation."""
    model = model_pb2.ServingModel(model=MODEL, generation=generation)
    return registry_pb2.WatchServingResponse(models=[model]).SerializeToString()


async def next_generation(states: AsyncIterator[bytes]) -> int:
    """The generation of the next state."""
    content = await asyncio.wait_for(anext(states), TIMEOUT)
    (model,) = registry_pb2.WatchServingResponse.FromString(content).models
    return int(model.generation)


async def test_watch_yields_the_state_now_and_every_change(registry: Adapter) -> None:
    states = registry.port.watch()
    assert await next_generation(states) == 1
    for generation in (2, 3):
        registry.want(generation)
        assert await next_generation(states) == generation
    late = registry.port.watch()
    assert await next_generation(late) == 3
    for watching in (states, late):
        await watching.aclose()


async def test_an_outage_ends_the_stream_and_watch_works_afterwards(registry: Adapter) -> None:
    states = registry.port.watch()
    assert await next_generation(states) == 1
    await registry.stop()
    with pytest.raises(FlywheelError):
        await next_generation(states)
    for call in (
        registry.port.report([], 1.0),
        anext(registry.port.download(VERSION, ArtifactSpec("model.onnx", 3, ""), 1.0)),
    ):
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await call
    await registry.start()

    async def watched() -> int | None:
        states = registry.port.watch()
        with suppress(FlywheelError):
            return await next_generation(states)
        return None

    assert await eventually(watched) == 1


async def test_a_specification_is_returned_by_its_digest(registry: Adapter) -> None:
    registry.specs["ab"] = b"spec"
    assert b"spec" == await registry.port.spec(f"{MODEL}/releases/1", "ab", TIMEOUT)
    with pytest.raises(NotFound):
        await registry.port.spec(f"{MODEL}/releases/1", "cd", TIMEOUT)


async def test_a_report_arrives_completely(registry: Adapter) -> None:
    observed = [
        ObservedModel(MODEL, 7, ("releases/1", "releases/2"), {"releases/3": "too large"}),
        ObservedModel(f"{MODEL}2", 0, (), {}),
    ]
    for models in (observed, []):
        await registry.port.report(models, TIMEOUT)
    expected = [
        model_pb2.ObservedModel(
            model=MODEL,
            generation=7,
            ready_releases=["releases/1", "releases/2"],
            failures={"releases/3": "too large"},
        ),
        model_pb2.ObservedModel(model=f"{MODEL}2"),
    ]
    assert registry.reports() == [expected, []]
    assert not registry.left()
    await registry.port.leave(TIMEOUT)
    assert registry.left()
    await registry.port.report([], TIMEOUT)
    assert not registry.left()


async def test_download_returns_all_bytes_but_never_more_than_declared(registry: Adapter) -> None:
    content = bytes(range(256)) * 10
    registry.artifacts[VERSION, "model.onnx"] = content
    registry.artifacts[VERSION, "empty"] = b""

    async def download(name: str, size: int) -> bytes:
        artifact = ArtifactSpec(name, size, "not verified here")
        return b"".join([piece async for piece in registry.port.download(VERSION, artifact, TIMEOUT)])

    assert await download("model.onnx", len(content)) == content
    assert await download("model.onnx", len(content) + 1) == content, "the digest check detects this"
    assert await download("empty", 0) == b""
    with pytest.raises(DataLoss) as caught:
        await download("model.onnx", len(content) - 1)
    assert caught.value.reason == "WRONG_SIZE"
    with pytest.raises(NotFound):
        await download("absent", 1)
