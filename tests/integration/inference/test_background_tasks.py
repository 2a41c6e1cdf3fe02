"""Background tasks of the gateway after unexpected exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from flywheel_common.grpc.server import Server
from flywheel_common.kafka import topics
from flywheel_inference.config import InferenceSettings
from flywheel_inference.server import Ports
from tests.support.background_faults import Faults
from tests.support.servers.inference import MemoryDeployment

W = (0.5, -0.25, 1.0)


class FaultyDeployment(MemoryDeployment):
    """A deployment in memory whose gateway's background tasks meet unexpected exceptions."""

    def __init__(self, stack: AsyncExitStack) -> None:
        super().__init__(stack)
        self.faults = Faults()

    async def ports(self, settings: InferenceSettings, stack: AsyncExitStack) -> Ports:
        ports = await super().ports(settings, stack)
        for replica in ports.replicas:
            replica.holds = self.faults.proxy(replica.holds)
        return self.faults.wrap(ports)

    async def _server(self, settings: InferenceSettings, stack: AsyncExitStack) -> Server:
        server = await super()._server(settings, stack)
        self.faults.watch(server, without_ports=["readiness"])
        return server


@pytest.fixture
async def faulty_deployment() -> AsyncIterator[FaultyDeployment]:
    async with AsyncExitStack() as stack:
        started = FaultyDeployment(stack)
        await started.start()
        yield started


async def test_each_background_task_works_again_after_an_unexpected_error(
    faulty_deployment: FaultyDeployment,
) -> None:
    registry = faulty_deployment.registry
    gateway = await faulty_deployment.gateway()
    wanted = registry.want(
        champion=registry.release(31, W), challenger=registry.release(32, W), shadow_percent=100
    )
    await gateway.serves(wanted)
    await faulty_deployment.faults.overcome(gateway.predict)
    answer = await gateway.predict()
    await faulty_deployment.logged(topics.PREDICTION_LOGGED, {answer.prediction_id}, each=2)
