"""Contract tests of holds on the models of a shared model server, in memory and in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from flywheel_inference.fakes.model_holds import MemoryModelHolds, SharedHolds
from flywheel_inference.models.errors import HoldsUnknown, ModelBeingUnloaded
from flywheel_inference.models.ports import ModelHolds
from flywheel_inference.store.redis.model_holds import RedisModelHolds
from tests.support.ports import free_port

TRITON = "triton:8001"


@pytest.fixture(params=["memory", "redis"])
async def holds_of(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[str], ModelHolds]]:
    """Gateway id → its holds."""
    if request.param == "memory":
        shared = SharedHolds()
        yield lambda gateway: MemoryModelHolds(gateway, shared)
        return
    url = str(request.getfixturevalue("redis_url"))
    async with Redis.from_url(url) as redis:
        await redis.set(f"triton:{{{TRITON}}}:since", 1)
    made: list[RedisModelHolds] = []

    def of(gateway: str) -> ModelHolds:
        made.append(RedisModelHolds(url, TRITON, gateway, hold_seconds=30))
        return made[-1]

    yield of
    for holds in made:
        await holds.close()


async def test_the_last_gateway_unloads(holds_of: Callable[[str], ModelHolds]) -> None:
    a, b = holds_of("a"), holds_of("b")
    await a.hold("m.v1")
    await b.hold("m.v1")
    await b.hold("m.v1")
    await a.hold("m.v2")
    assert not await a.drop("m.v1")
    assert await b.drop("m.v1")
    assert await a.drop("m.v2")


async def test_a_model_is_not_loaded_while_it_is_unloaded(holds_of: Callable[[str], ModelHolds]) -> None:
    a, b = holds_of("a"), holds_of("b")
    await a.hold("m.v1")
    assert await a.drop("m.v1")
    await a.hold("m.v1")
    assert await a.drop("m.v1")
    with pytest.raises(ModelBeingUnloaded):
        await b.hold("m.v1")
    await b.hold("m.v2")
    await a.unloaded("m.v1")
    await b.hold("m.v1")
    await a.hold("m.v1")
    assert not await a.drop("m.v1")


async def test_a_model_that_was_never_held_may_be_unloaded(holds_of: Callable[[str], ModelHolds]) -> None:
    assert await holds_of("a").drop("m.v1")


async def test_holds_that_redis_lost_are_unknown(redis_url: str) -> None:
    holds = RedisModelHolds(redis_url, TRITON, "a", hold_seconds=30)
    await holds.hold("m.v1")
    with pytest.raises(HoldsUnknown):
        await holds.drop("m.v1")
    async with Redis.from_url(redis_url) as redis:
        await redis.set(f"triton:{{{TRITON}}}:since", 1)
        assert await holds.drop("m.v1")
        await redis.flushall()
    with pytest.raises(HoldsUnknown):
        await holds.drop("m.v1")
    await holds.close()


async def test_a_hold_ends_when_its_gateway_does_not_renew_it(redis_url: str) -> None:
    holds = RedisModelHolds(redis_url, TRITON, "a", hold_seconds=30)
    async with Redis.from_url(redis_url) as redis:
        await redis.set(f"triton:{{{TRITON}}}:since", 1)
        now, _ = await redis.time()
        await redis.zadd(f"triton:{{{TRITON}}}:holds:m.v1", {"dead": now - 1})
        await redis.zadd(f"triton:{{{TRITON}}}:holds:m.v2", {"slow": now + 20})
    assert await holds.drop("m.v1")
    assert not await holds.drop("m.v2")
    await holds.close()


async def test_without_redis_models_are_loaded_but_not_unloaded() -> None:
    port = free_port()
    holds = RedisModelHolds(f"redis://127.0.0.1:{port}/0", TRITON, "a", hold_seconds=30)
    await holds.hold("m.v1")
    with pytest.raises(HoldsUnknown):
        await holds.drop("m.v1")
    await holds.unloaded("m.v1")
    await holds.close()
