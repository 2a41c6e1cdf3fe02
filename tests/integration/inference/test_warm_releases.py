"""Former releases that stay loaded for some time."""

from __future__ import annotations

import time

from tests.support.eventually import eventually
from tests.support.servers.inference import MemoryDeployment

W = (0.5, -0.25, 1.0)
HOUR = 3600.0


async def test_a_former_release_stays_loaded_for_some_time(memory_deployment: MemoryDeployment) -> None:
    registry, models = memory_deployment.registry, memory_deployment.models
    gateway = await memory_deployment.gateway(warm_seconds=HOUR)
    names = [registry.release(number, W) for number in (1, 2, 3)]
    now = int(time.time())
    await gateway.serves(
        registry.want(
            champion=names[2],
            warm=[names[1], names[0]],
            warm_since=[{"seconds": now - 3597}, {"seconds": now - 3601}],
        )
    )

    async def loaded() -> list[bool]:
        return [await models.is_loaded(f"test.late.v{number}", 1.0) for number in (1, 2, 3)]

    async def becomes(expected: list[bool]) -> None:
        async def equal() -> bool:
            return await loaded() == expected

        await eventually(equal, within=10)

    await becomes([False, True, True])
    await becomes([False, False, True])
    assert not (await gateway.predict()).degraded


async def test_a_warm_release_needs_no_load_when_it_serves_again(memory_deployment: MemoryDeployment) -> None:
    registry, models = memory_deployment.registry, memory_deployment.models
    gateway = await memory_deployment.gateway(warm_seconds=HOUR)
    old, new = registry.release(1, W), registry.release(2, W)
    await gateway.serves(registry.want(champion=old))
    await gateway.serves(registry.want(champion=new, warm=[old], warm_since=[{"seconds": int(time.time())}]))
    loads = models.loads
    await gateway.serves(registry.want(champion=old))
    assert not (await gateway.predict()).degraded
    assert models.loads == loads
