"""Hung dependencies: predictions are answered before their deadline, and recover afterwards."""

from __future__ import annotations

from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from flywheel_local.triton import Triton
from flywheel_protos.events.v1 import prediction_pb2
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.servers.inference import Deployment

W = (0.5, -0.25, 1.0)
DEFAULT = prediction_pb2.PREDICTION_SOURCE_DEFAULT
EXPECTED_REASONS = {
    "triton": ("BUDGET_EXCEEDED", "MODEL_UNAVAILABLE"),
    "feature": ("BUDGET_EXCEEDED", "FEATURES_UNAVAILABLE"),
}


@pytest.mark.parametrize("deadline", [2.0, 0.5])
async def test_hung_dependencies_degrade_answers_within_the_deadline(
    deployment: Deployment, triton: Triton, redis_url: str, deadline: float
) -> None:
    backends = {
        "triton": triton.grpc_url,
        "feature": deployment.feature_server.address,
        "registry": deployment.registry_server.address,
        "redis": urlsplit(redis_url).netloc.rpartition("@")[2],
    }
    async with AsyncExitStack() as stack:
        proxies: dict[str, FaultProxy] = {}
        for name, address in backends.items():
            host, _, port = address.rpartition(":")
            proxies[name] = await stack.enter_async_context(FaultProxy(host, int(port)))
        gateway = await deployment.gateway(
            triton_url=proxies["triton"].address,
            feature_address=proxies["feature"].address,
            registry_address=proxies["registry"].address,
            redis_url=redis_url.replace(backends["redis"], proxies["redis"].address),
            answer_reserve_seconds=0.2,
        )
        release = deployment.registry.release(74, W)
        release.release.fallback.cached_max_age.FromSeconds(60)
        await gateway.serves(deployment.registry.want(champion=release))
        expected = (await gateway.predict()).score
        proxies["registry"].stall()
        assert (await gateway.predict(timeout=deadline)).score == expected
        proxies["redis"].stall()
        for name, reasons in EXPECTED_REASONS.items():
            proxies[name].stall()
            answer = await gateway.predict(timeout=deadline)
            assert (answer.degraded, answer.source, answer.score) == (True, DEFAULT, 0.25)
            assert answer.degraded_reason in reasons
            proxies[name].heal()

            async def recovered() -> bool:
                answer = await gateway.predict()
                return not answer.degraded and answer.score == expected

            await eventually(recovered, within=20)
        for proxy in proxies.values():
            proxy.heal()
        await gateway.serves(deployment.registry.want(champion=deployment.registry.release(75, W)))
        await gateway.close()
