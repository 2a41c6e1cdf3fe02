"""After a restart of Triton with 60 models, those with traffic are loaded first."""

from __future__ import annotations

import pytest

from tests.robustness.inference.conftest import Platform
from tests.support.peers.inference import RegistryServicer, registry_server, want_models
from tests.support.servers.inference_processes import W
from tests.support.triton_restart import restart_triton

MODELS = 60
LOADS_AT_ONCE = 8

pytestmark = pytest.mark.timeout(600)


async def test_models_with_traffic_are_loaded_first_after_a_restart(platform: Platform) -> None:
    registry = RegistryServicer()
    names = want_models(registry, MODELS, W)
    server = registry_server(registry)
    await server.start()
    try:
        gateway = await platform.gateway(registry_address=server.address, loads_at_once=LOADS_AT_ONCE)
        busy = [names[number] for number in (7, 21, 33, 58)]
        restart = await restart_triton(gateway.address, platform.backends.triton, names, busy)
    finally:
        await server.stop()
    print(f"busy after {restart.busy_seconds:.1f} s, all after {restart.all_seconds:.1f} s")
    assert sorted(restart.order) == sorted(names)
    # The first loads begin together and may end in any order.
    assert set(busy) <= set(restart.order[: 2 * LOADS_AT_ONCE])
