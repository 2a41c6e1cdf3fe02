"""Whatever the gateway asks may hang: a prediction is answered before its caller's deadline, and the model's again afterwards."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from flywheel_protos.events.v1 import prediction_pb2
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy

W = (0.5, -0.25, 1.0)
DEFAULT = prediction_pb2.PREDICTION_SOURCE_DEFAULT
WHY = {
    "triton": ("BUDGET_EXCEEDED", "MODEL_UNAVAILABLE"),
    "feature": ("BUDGET_EXCEEDED", "FEATURES_UNAVAILABLE"),
}


@pytest.mark.parametrize("deadline", [2.0, 0.5])
async def test_a_triton_feature_service_redis_and_registry_that_hang_cost_an_answer_its_model_and_no_deadline(
    world: Any, redis_url: str, deadline: float
) -> None:
    backends = {
        "triton": world.triton.grpc_url,
        "feature": f"127.0.0.1:{world.feature_peer.port}",
        "registry": f"127.0.0.1:{world.registry_peer.port}",
        "redis": urlsplit(redis_url).netloc.rpartition("@")[2],
    }
    async with AsyncExitStack() as stack:
        lines: dict[str, FaultProxy] = {}
        for name, address in backends.items():
            host, _, port = address.rpartition(":")
            lines[name] = await stack.enter_async_context(FaultProxy(host, int(port)))
        gateway = await world.gateway(
            triton_url=lines["triton"].address,
            feature_address=lines["feature"].address,
            registry_address=lines["registry"].address,
            redis_url=redis_url.replace(backends["redis"], lines["redis"].address),
            answer_reserve_seconds=0.2,
        )
        release = world.registry.release(74, W)
        release.release.fallback.cached_max_age.FromSeconds(60)
        await gateway.serves(world.registry.want(champion=release))
        expected = (await gateway.predict()).score
        lines["registry"].stall()
        assert (await gateway.predict(timeout=deadline)).score == expected
        lines["redis"].stall()
        for name, reasons in WHY.items():
            lines[name].stall()
            answer = await gateway.predict(timeout=deadline)
            assert (answer.degraded, answer.source, answer.score) == (True, DEFAULT, 0.25)
            assert answer.degraded_reason in reasons
            lines[name].heal()

            async def recovered() -> bool:
                answer = await gateway.predict()
                return not answer.degraded and answer.score == expected

            await eventually(recovered, within=20)
        for line in lines.values():
            line.heal()
        await gateway.serves(world.registry.want(champion=world.registry.release(75, W)))
        await gateway.close()
