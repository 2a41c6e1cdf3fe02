"""Calls of several model servers: health, choice and failover; loads on all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

from flywheel_common.arrays import Array
from flywheel_common.signature import OutputSpec
from flywheel_inference.encoding.release_messages import release_spec
from flywheel_inference.fakes.model_holds import MemoryModelHolds, SharedHolds
from flywheel_inference.fakes.model_server import MemoryModelServer
from flywheel_inference.fakes.saved_state import MemoryState
from flywheel_inference.models.errors import (
    ModelNotLoaded,
    ModelRefused,
    ModelServerDown,
    ModelTimeout,
)
from flywheel_inference.models.loader import ReleaseLoader
from flywheel_inference.models.replica import TIMEOUTS_IN_A_ROW, Replica
from flywheel_inference.models.replicas import Replicas
from flywheel_inference.releases.release import FeatureSetContract, ReleaseSpec
from tests.support.builders.feature_units import run_event_loop
from tests.support.builders.inference import run_onnx
from tests.support.eventually import eventually
from tests.support.peers.inference import RegistryServicer

TENSORS = {"INPUT": np.ones((1, 3), np.float32)}
NAME = "test.late.v1"


class Server(MemoryModelServer):
    """Counts its calls. `hold`: calls of `infer` wait for it. `error`: `infer` raises it. `slow`: loading
    waits for it."""

    def __init__(self) -> None:
        super().__init__(run_onnx)
        self.calls = 0
        self.hold: asyncio.Event | None = None
        self.slow: asyncio.Event | None = None
        self.error: Exception | None = None

    async def infer(self, *arguments: Any) -> Array:
        self.calls += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        return await super().infer(*arguments)

    async def load(self, *arguments: Any) -> None:
        if self.slow is not None:
            await self.slow.wait()
        await super().load(*arguments)


class Peers:
    """An artifact source and the contracts of feature sets."""

    def __init__(self, registry: RegistryServicer) -> None:
        self._registry = registry
        self.downloads = 0

    async def download(self, model_version: str, artifact: Any, timeout: float) -> AsyncGenerator[bytes]:
        self.downloads += 1
        yield self._registry.artifacts[model_version, artifact.name]

    async def contract(self, feature_set: str, timeout: float = 5.0) -> FeatureSetContract:
        return FeatureSetContract(feature_set, (), ())


class Setup:
    """Three model servers with one release."""

    def __init__(self) -> None:
        registry = RegistryServicer()
        self.spec: ReleaseSpec = release_spec(registry.release(1, (0.5, -0.25, 1.0)), "d")
        self.servers = [Server() for _ in range(3)]
        self.holds = [SharedHolds() for _ in range(3)]
        self.all = [
            Replica(f"triton-{i}", server, MemoryModelHolds("gateway", holds), backend="onnxruntime")
            for i, (server, holds) in enumerate(zip(self.servers, self.holds, strict=True))
        ]
        self.replicas = Replicas(self.all)
        self.peers: Any = Peers(registry)
        self.loader = ReleaseLoader(self.peers, self.peers, MemoryState(), self.replicas, spread_seconds=0.5)

    async def infer(self, timeout: float = 1.0) -> Array:
        return await self.replicas.infer(NAME, TENSORS, OutputSpec(), timeout)

    def calls(self) -> list[int]:
        found = [server.calls for server in self.servers]
        for server in self.servers:
            server.calls = 0
        return found


@pytest.fixture
async def three() -> Setup:
    setup = Setup()
    await setup.loader.load(setup.spec)
    setup.calls()
    return setup


async def test_a_release_is_loaded_on_every_server_from_one_download(three: Setup) -> None:
    assert [NAME in replica.models for replica in three.all] == [True, True, True]
    assert [server.loads for server in three.servers] == [1, 1, 1]
    assert three.peers.downloads == 1
    assert [holds.holders for holds in three.holds] == [{NAME: {"gateway"}}] * 3


async def test_calls_in_flight_are_spread_evenly(three: Setup) -> None:
    for server in three.servers:
        server.hold = asyncio.Event()
    calls = [asyncio.create_task(three.infer()) for _ in range(30)]
    await asyncio.sleep(0)
    assert three.calls() == [10, 10, 10]
    for server in three.servers:
        assert server.hold is not None
        server.hold.set()
    await asyncio.gather(*calls)
    assert [replica.in_flight for replica in three.all] == [0, 0, 0]


async def test_a_call_goes_on_to_the_next_server_when_one_is_gone(three: Setup) -> None:
    three.servers[0].down = True
    assert (await three.infer()).shape == (1, 1)
    assert not three.all[0].up
    three.calls()
    for _ in range(6):
        await three.infer()
    assert three.calls()[0] == 0, "a server that is down gets no calls"


async def test_a_server_that_is_back_with_its_models_gets_calls_again(three: Setup) -> None:
    three.servers[0].down = True
    await three.infer()
    three.servers[0].down = False
    await three.replicas.check()
    await three.infer()
    assert three.calls() == [2, 1, 0]


async def test_a_server_that_lost_its_models_is_loaded_before_it_gets_calls(three: Setup) -> None:
    three.servers[0].down = True
    await three.replicas.check()
    assert [replica.up for replica in three.all] == [False, True, True]
    assert three.replicas.lack(NAME) == []
    three.servers[0].down = False
    await three.servers[0].unload(NAME, 1.0)
    await three.replicas.check()
    assert three.replicas.lack(NAME) == [three.all[0]]
    await three.infer()
    assert three.calls() == [0, 1, 0]
    await three.loader.load(three.spec, answers=True)
    assert three.replicas.lack(NAME) == []
    three.calls()
    await three.infer()
    assert three.calls() == [1, 0, 0]


async def test_a_lost_model_is_noticed_by_the_call(three: Setup) -> None:
    await three.servers[0].unload(NAME, 1.0)
    await three.infer()
    assert three.calls() == [1, 1, 0]
    assert three.replicas.lack(NAME) == [three.all[0]]


async def test_a_model_that_all_servers_lost_is_not_loaded(three: Setup) -> None:
    for server in three.servers:
        await server.unload(NAME, 1.0)
    with pytest.raises(ModelNotLoaded):
        await three.infer()
    assert not three.replicas.has(NAME)


async def test_a_model_on_a_server_that_is_gone_counts_as_unavailable(three: Setup) -> None:
    three.servers[0].down = True
    for server in three.servers[1:]:
        await server.unload(NAME, 1.0)
    with pytest.raises(ModelServerDown):
        await three.infer()


async def test_servers_that_seem_down_are_tried_when_all_do(three: Setup) -> None:
    for server in three.servers:
        server.down = True
    await three.replicas.check()
    assert not three.replicas.up
    three.servers[2].down = False
    await three.infer()
    assert three.calls()[2] == 1


async def test_a_server_whose_calls_time_out_gets_no_more_until_its_check(three: Setup) -> None:
    three.servers[0].error = ModelTimeout("late")
    for _ in range(TIMEOUTS_IN_A_ROW):
        with pytest.raises(ModelTimeout):
            await three.infer()
    three.calls()
    await three.infer()
    assert three.calls() == [0, 1, 0]
    await three.replicas.check()
    assert three.all[0].up


async def test_refusals_are_not_tried_elsewhere(three: Setup) -> None:
    three.servers[0].error = ModelRefused("wrong tensors")
    with pytest.raises(ModelRefused):
        await three.infer()
    assert three.calls() == [1, 0, 0]
    assert three.all[0].up


async def test_a_server_that_hangs_does_not_delay_a_release_for_long() -> None:
    setup = Setup()
    setup.servers[1].slow = asyncio.Event()
    async with asyncio.timeout(5):
        _, failure = await setup.loader.load(setup.spec)
    assert isinstance(failure, ModelTimeout)
    assert [NAME in replica.models for replica in setup.all] == [True, False, True]


async def test_a_release_is_not_ready_when_no_server_takes_it() -> None:
    setup = Setup()
    for server in setup.servers:
        server.down = True
    with pytest.raises(ModelServerDown):
        await setup.loader.load(setup.spec)


async def test_a_model_is_unloaded_only_where_no_gateway_holds_it(three: Setup) -> None:
    other = MemoryModelHolds("other", three.holds[1])
    await other.hold(NAME)
    assert await three.loader.unload(NAME)
    assert [await server.is_loaded(NAME, 1.0) for server in three.servers] == [False, True, False]
    assert not three.replicas.has(NAME)


@pytest.mark.parametrize(("instances", "calls"), [(1, 1), (3, 3)])
async def test_a_load_warms_every_instance_up(instances: int, calls: int) -> None:
    setup, server = Setup(), Server()
    server.hold = asyncio.Event()
    replica = Replica("triton", server, MemoryModelHolds("gateway", SharedHolds()), instances=instances)
    loader = ReleaseLoader(setup.peers, setup.peers, MemoryState(), Replicas([replica]))
    load = asyncio.create_task(loader.load(setup.spec))
    await eventually(lambda: server.calls == calls)
    await run_event_loop()
    assert server.calls == calls, "at once: an instance that is busy leaves the call to another one"
    server.hold.set()
    await load
    assert server.calls == calls
