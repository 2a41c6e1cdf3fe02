"""One law for the gateway's peers: in memory, and by RPC to servers that speak the registry's and the feature service's API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from flywheel_common.errors import DataLoss, DeadlineExceeded, FlywheelError, NotFound, Unavailable
from flywheel_common.grpc.channel import channel
from flywheel_inference.fakes.features import MemoryFeatures
from flywheel_inference.fakes.registry import MemoryRegistry
from flywheel_inference.models.feature_block import NOT_FOUND, NULL, PRESENT
from flywheel_inference.releases.release import ArtifactSpec, Contract, FieldSpec
from flywheel_inference.serving.desired_state import ObservedModel
from flywheel_inference.store.grpc.features import FeatureService
from flywheel_inference.store.grpc.registry import Registry as RegistryByRpc
from flywheel_inference.store.grpc.registry import to_observed
from flywheel_protos.feature.v1 import feature_pb2_grpc
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.types.v1.value_pb2 import DATA_TYPE_FLOAT64, DATA_TYPE_STRING
from tests.integration.inference.gateway_peers import MODEL, SET, Features, Peer, Registry
from tests.support.eventually import eventually

PATIENT = 10.0
VERSION = f"{MODEL}/versions/1"


def state(generation: int) -> bytes:
    """A whole desired state."""
    model = model_pb2.ServingModel(model=MODEL, generation=generation)
    return registry_pb2.WatchServingResponse(models=[model]).SerializeToString()


# -------------------------------------------------------------------------------------------------- the registry


@dataclass
class RegistryPeer:
    port: Any
    """`serving.RegistryPort` and `release_loader.ArtifactSource`."""
    want: Callable[[int], None]
    artifacts: dict[tuple[str, str], bytes]
    reports: Callable[[], list[list[Any]]]
    """Those of models, as protobuf."""
    go: Callable[[], Any]
    come: Callable[[], Any]


@pytest.fixture(params=["memory", "grpc"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[RegistryPeer]:
    """It wants generation 1."""
    if request.param == "memory":
        memory = MemoryRegistry(state(1))

        async def go() -> None:
            memory.set_down(True)

        async def come() -> None:
            memory.set_down(False)

        yield RegistryPeer(
            memory,
            lambda generation: memory.want(state(generation)),
            memory.artifacts,
            lambda: [[to_observed(model) for model in report] for report in memory.reports],
            go,
            come,
        )
        return
    fake = Registry()
    fake.want()
    peer = Peer(registry_pb2_grpc.add_RegistryServiceServicer_to_server, fake)
    await peer.start()
    async with channel(
        f"127.0.0.1:{peer.port}", client_name="tests", health_check=False, retries=False
    ) as way:

        def want(generation: int) -> None:
            assert generation == fake.want()

        yield RegistryPeer(
            RegistryByRpc(way, "gateway-test", ""),
            want,
            fake.artifacts,
            lambda: [list(report.models) for report in fake.reports],
            peer.stop,
            peer.start,
        )
    await peer.stop()


async def told(states: AsyncIterator[bytes]) -> int:
    """The generation of the next state."""
    content = await asyncio.wait_for(anext(states), PATIENT)
    (model,) = registry_pb2.WatchServingResponse.FromString(content).models
    return int(model.generation)


async def test_a_watcher_is_told_the_whole_state_at_once_and_at_every_change(registry: RegistryPeer) -> None:
    states = registry.port.watch()
    assert 1 == await told(states)
    for generation in (2, 3):
        registry.want(generation)
        assert generation == await told(states)
    late = registry.port.watch()
    assert 3 == await told(late)
    for watching in (states, late):
        await watching.aclose()


async def test_a_registry_that_goes_away_ends_the_stream_with_an_error_and_can_be_watched_again(
    registry: RegistryPeer,
) -> None:
    states = registry.port.watch()
    assert 1 == await told(states)
    await registry.go()
    with pytest.raises(FlywheelError):
        await told(states)
    for call in (
        registry.port.report([], 1.0),
        registry.port.download(VERSION, ArtifactSpec("model.onnx", 3, ""), 1.0),
    ):
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await call
    await registry.come()

    async def again() -> int | None:
        states = registry.port.watch()
        with suppress(FlywheelError):
            return await told(states)
        return None

    assert 1 == await eventually(again)


async def test_a_report_arrives_whole(registry: RegistryPeer) -> None:
    seen = [
        ObservedModel(MODEL, 7, ("releases/1", "releases/2"), {"releases/3": "too large"}),
        ObservedModel(f"{MODEL}2", 0, (), {}),
    ]
    for models in (seen, []):
        await registry.port.report(models, PATIENT)
    expected = [
        model_pb2.ObservedModel(
            model=MODEL,
            generation=7,
            ready_releases=["releases/1", "releases/2"],
            failures={"releases/3": "too large"},
        ),
        model_pb2.ObservedModel(model=f"{MODEL}2"),
    ]
    assert [expected, []] == registry.reports()


async def test_a_files_bytes_come_whole_and_never_more_than_declared(registry: RegistryPeer) -> None:
    content = bytes(range(256)) * 10
    registry.artifacts[VERSION, "model.onnx"] = content
    registry.artifacts[VERSION, "empty"] = b""

    async def download(name: str, size: int) -> bytes:
        return bytes(
            await registry.port.download(VERSION, ArtifactSpec(name, size, "not yet checked"), PATIENT)
        )

    assert content == await download("model.onnx", len(content))
    assert content == await download("model.onnx", len(content) + 1), "the digest will tell"
    assert b"" == await download("empty", 0)
    with pytest.raises(DataLoss) as longer:
        await download("model.onnx", len(content) - 1)
    assert "WRONG_SIZE" == longer.value.reason
    with pytest.raises(NotFound):
        await download("absent", 1)


# --------------------------------------------------------------------------------------------- the feature service

CONTRACT = Contract(
    SET,
    (FieldSpec("carrier", DATA_TYPE_STRING),),
    (FieldSpec("miles", DATA_TYPE_FLOAT64), FieldSpec("origin", DATA_TYPE_STRING)),
)


@dataclass
class FeaturePeer:
    port: Any
    """`scoring.FeatureLookup` and `release_loader.Contracts`. Feature hist__delay is 2 for UA, -1 for DL, null for AA."""
    go: Callable[[], Any]
    come: Callable[[], Any]


@pytest.fixture(params=["memory", "grpc"])
async def features(request: pytest.FixtureRequest) -> AsyncIterator[FeaturePeer]:
    if request.param == "memory":
        rows = {("UA",): [2.0], ("DL",): [-1.0], ("AA",): [None]}
        memory = MemoryFeatures([CONTRACT], [FieldSpec("hist__delay", DATA_TYPE_FLOAT64)], rows)

        async def go() -> None:
            memory.down = True

        async def come() -> None:
            memory.down = False

        yield FeaturePeer(memory, go, come)
        return
    fake = Features()
    fake.delays["AA"] = None
    peer = Peer(feature_pb2_grpc.add_FeatureServiceServicer_to_server, fake)
    async with AsyncExitStack() as stack:
        await peer.start()
        stack.push_async_callback(peer.stop)
        way = channel(f"127.0.0.1:{peer.port}", client_name="tests", health_check=False, retries=False)
        yield FeaturePeer(FeatureService(await stack.enter_async_context(way)), peer.stop, peer.start)


async def delays(features: FeaturePeer, carriers: list[str]) -> tuple[list[float | None], list[int]]:
    block = await features.port.online(
        CONTRACT, [(c,) for c in carriers], [(1.0, "JFK")] * len(carriers), None, PATIENT
    )
    assert SET == block.feature_set
    place = [column.name for column in block.columns].index("hist__delay")
    column = block.columns[place]
    assert DATA_TYPE_FLOAT64 == column.data_type
    values = [v if ok else None for v, ok in zip(column.values.tolist(), column.valid.tolist(), strict=True)]
    return values, block.statuses[place].tolist()


async def test_a_feature_set_says_what_it_needs(features: FeaturePeer) -> None:
    assert CONTRACT == await features.port.contract(SET)
    with pytest.raises(NotFound):
        await features.port.contract("projects/test/featureSets/unknown/versions/1")


async def test_features_come_in_the_order_asked_with_what_is_known_of_each(features: FeaturePeer) -> None:
    carriers = ["DL", "ZZ", "UA", "AA", "DL"]
    assert ([-1.0, None, 2.0, None, -1.0], [PRESENT, NOT_FOUND, PRESENT, NULL, PRESENT]) == await delays(
        features, carriers
    )
    assert ([2.0], [PRESENT]) == await delays(features, ["UA"])


async def test_a_feature_service_that_is_away_is_unavailable_and_answers_when_it_is_back(
    features: FeaturePeer,
) -> None:
    await features.go()
    with pytest.raises(Unavailable):
        await delays(features, ["UA"])
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await features.port.contract(SET, 1.0)
    await features.come()

    async def back() -> Any:
        with suppress(Unavailable):
            return await delays(features, ["UA"])
        return None

    assert ([2.0], [PRESENT]) == await eventually(back)


async def test_a_feature_service_that_hangs_is_given_up_at_the_deadline() -> None:
    fake = Features()
    fake.hold = asyncio.Event()
    peer = Peer(feature_pb2_grpc.add_FeatureServiceServicer_to_server, fake)
    await peer.start()
    async with channel(
        f"127.0.0.1:{peer.port}", client_name="tests", health_check=False, retries=False
    ) as way:
        with pytest.raises(DeadlineExceeded):
            await FeatureService(way).online(CONTRACT, [("UA",)], [(1.0, "JFK")], None, 0.1)
        fake.hold.set()
    await peer.stop()


async def test_what_a_caller_sent_wrongly_is_its_mistake_and_not_an_outage() -> None:
    class Refusing(Features):
        async def GetOnlineFeatures(self, request: Any, context: Any) -> Any:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a wrong type")

    peer = Peer(feature_pb2_grpc.add_FeatureServiceServicer_to_server, Refusing())
    await peer.start()
    async with channel(
        f"127.0.0.1:{peer.port}", client_name="tests", health_check=False, retries=False
    ) as way:
        with pytest.raises(FlywheelError) as refused:
            await FeatureService(way).online(CONTRACT, [("UA",)], [(np.nan, "JFK")], 5, PATIENT)
    assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code
    await peer.stop()
