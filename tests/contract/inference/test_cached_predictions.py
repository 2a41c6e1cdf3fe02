"""Contract tests of cached batch predictions, in memory and in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from flywheel_common.scoring.cached_prediction import CachedPrediction, encode, key_of
from flywheel_inference.fakes.cached_predictions import MemoryCachedPredictions
from flywheel_inference.prediction.ports import CachedPredictions
from flywheel_inference.store.redis.cached_predictions import RedisCachedPredictions
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy

LATE, OTHER = "projects/p/models/late", "projects/p/models/other"
LONG_TIMEOUT = 5.0
"""Seconds; the tests check what is read, and the machine may be busy."""


def prediction(at: int, *values: float) -> CachedPrediction:
    return CachedPrediction(values, at, b"\0fingers")


@dataclass
class Adapter:
    cached: CachedPredictions
    put: Callable[[str, str, CachedPrediction], Awaitable[None]]
    """Writes a prediction, as a batch job does."""


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """URL of Redis; empty for the in-memory adapter."""
    return str(request.getfixturevalue("redis_url")) if request.param == "redis" else ""


@pytest.fixture
async def adapter(url: str) -> AsyncIterator[Adapter]:
    if not url:
        memory = MemoryCachedPredictions()

        async def put(model: str, subject: str, prediction: CachedPrediction) -> None:
            memory.predictions[model, subject] = prediction

        yield Adapter(memory, put)
        return
    async with Redis.from_url(url) as redis:

        async def put(model: str, subject: str, prediction: CachedPrediction) -> None:
            await redis.set(key_of(model, subject), encode(prediction))

        cached = RedisCachedPredictions(url, timeout_seconds=LONG_TIMEOUT)
        yield Adapter(cached, put)
        await cached.close()


async def test_get_returns_the_prediction_written_last(adapter: Adapter) -> None:
    assert await adapter.cached.get(LATE, "UA") is None
    for written in (
        prediction(1_000_000_001, 0.875),
        prediction(-1, 0.1),
        prediction(2**62, 1.0),
        prediction(3, *[i / 7 for i in range(2_000)]),
    ):
        await adapter.put(LATE, "UA", written)
        assert written == await adapter.cached.get(LATE, "UA")


async def test_predictions_are_separate_by_model_and_subject(adapter: Adapter) -> None:
    written = {
        (LATE, "UA"): prediction(1, 0.1),
        (OTHER, "UA"): prediction(2, 0.2),
        (LATE, "UA|JFK"): prediction(3, 0.3),
        (LATE, "ü:\n"): prediction(4, 0.4),
        (LATE, ""): prediction(5, 0.5),
    }
    for (model, subject), value in written.items():
        await adapter.put(model, subject, value)
    assert written == {(m, s): await adapter.cached.get(m, s) for m, s in written}
    assert await adapter.cached.get(OTHER, "JFK") is None


async def test_concurrent_readers_get_their_own_predictions(adapter: Adapter) -> None:
    for i in range(100):
        await adapter.put(LATE, f"s{i}", prediction(i, i / 100))
    found = await asyncio.gather(*(adapter.cached.get(LATE, f"s{i}") for i in range(100)))
    assert [prediction(i, i / 100) for i in range(100)] == found


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0.875",
        b"x" * 16,
        b"x" * 23,
        b"x" * 25,
        encode(prediction(1, float("nan"))),
        encode(prediction(1, 0.5, float("inf"))),
        encode(prediction(1)),
    ],
)
async def test_an_unreadable_value_is_none(redis_url: str, value: bytes) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.set(key_of(LATE, "UA"), value)
        await redis.rpush(key_of(LATE, "a list"), "x")
    cached = RedisCachedPredictions(redis_url, timeout_seconds=LONG_TIMEOUT)
    assert (None, None) == (await cached.get(LATE, "UA"), await cached.get(LATE, "a list"))
    await cached.close()


async def test_fallbacks_of_one_batch_share_one_command_and_one_connection(redis_url: str) -> None:
    cached = RedisCachedPredictions(redis_url, timeout_seconds=LONG_TIMEOUT)
    await cached.connect()
    async with Redis.from_url(redis_url) as redis:

        async def commands() -> dict[str, int]:
            stats = await redis.info("commandstats")
            return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("get", "mget")}

        before = await commands()
        connections = (await redis.info("clients"))["connected_clients"]
        await asyncio.gather(*(cached.get(LATE, f"s{i}") for i in range(500)))
        after = await commands()
        assert (await redis.info("clients"))["connected_clients"] == connections
    assert (after["get"] - before["get"], after["mget"] - before["mget"]) == (0, 1)
    await cached.close()


async def test_a_stalled_or_stopped_redis_returns_none_without_an_error(redis_url: str) -> None:
    written = prediction(1, 0.875)
    async with Redis.from_url(redis_url) as redis:
        await redis.set(key_of(LATE, "UA"), encode(written))
    address = urlsplit(redis_url)
    assert address.hostname and address.port
    async with FaultProxy(address.hostname, address.port) as proxy:
        cached = RedisCachedPredictions(
            redis_url.replace(f":{address.port}/", f":{proxy.port}/"), timeout_seconds=0.1
        )

        async def read() -> CachedPrediction | None:
            return await cached.get(LATE, "UA")

        assert written == await eventually(read)
        proxy.stall()
        assert await read() is None
        assert not cached.idle, "the late read continues in the background"
        proxy.cut()
        for _ in range(10):
            assert await read() is None
        proxy.heal()
        assert written == await eventually(read)
        await cached.close()
