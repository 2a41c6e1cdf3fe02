"""One law for batch predictions, in memory and in Redis. What Predict makes of them: test_laws_at_the_edge.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from flywheel_inference.fakes.cached_predictions import MemoryPredictions
from flywheel_inference.fallback.choice import CachedPrediction
from flywheel_inference.prediction.ports import CachedPredictions
from flywheel_inference.store.redis.cached_predictions import RedisPredictions, encode, key_of
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy

LATE, OTHER = "projects/p/models/late", "projects/p/models/other"
# Patient: these tests are about what is read, and the machine may be busy.
PATIENT = 5.0


@dataclass
class Backed:
    cached: CachedPredictions
    put: Callable[[str, str, CachedPrediction], Awaitable[None]]
    """As a batch job writes it."""


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """Empty for what is in memory."""
    return str(request.getfixturevalue("redis_url")) if request.param == "redis" else ""


@pytest.fixture
async def backed(url: str) -> AsyncIterator[Backed]:
    if not url:
        memory = MemoryPredictions()

        async def hold(model: str, subject: str, prediction: CachedPrediction) -> None:
            memory.held[model, subject] = prediction

        yield Backed(memory, hold)
        return
    async with Redis.from_url(url) as redis:

        async def write(model: str, subject: str, prediction: CachedPrediction) -> None:
            await redis.set(key_of(model, subject), encode(prediction.score, prediction.scored_at_micros))

        cached = RedisPredictions(url, timeout_seconds=PATIENT)
        yield Backed(cached, write)
        await cached.close()


async def test_a_prediction_is_read_as_it_was_written_last(backed: Backed) -> None:
    assert await backed.cached.get(LATE, "UA") is None
    for prediction in (
        CachedPrediction(0.875, 1_000_000_001),
        CachedPrediction(0.1, -1),
        CachedPrediction(1.0, 2**62),
    ):
        await backed.put(LATE, "UA", prediction)
        assert prediction == await backed.cached.get(LATE, "UA")


async def test_predictions_of_other_models_and_subjects_are_others(backed: Backed) -> None:
    written = {
        (LATE, "UA"): CachedPrediction(0.1, 1),
        (OTHER, "UA"): CachedPrediction(0.2, 2),
        (LATE, "UA|JFK"): CachedPrediction(0.3, 3),
        (LATE, "ü:\n"): CachedPrediction(0.4, 4),
        (LATE, ""): CachedPrediction(0.5, 5),
    }
    for (model, subject), prediction in written.items():
        await backed.put(model, subject, prediction)
    assert written == {(m, s): await backed.cached.get(m, s) for m, s in written}
    assert await backed.cached.get(OTHER, "JFK") is None


async def test_a_hundred_readers_at_once_get_their_own(backed: Backed) -> None:
    for i in range(100):
        await backed.put(LATE, f"s{i}", CachedPrediction(i / 100, i))
    found = await asyncio.gather(*(backed.cached.get(LATE, f"s{i}") for i in range(100)))
    assert [CachedPrediction(i / 100, i) for i in range(100)] == found


@pytest.mark.parametrize("value", [b"", b"0.875", b"x" * 17])
async def test_what_is_no_prediction_is_none(redis_url: str, value: bytes) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.set(key_of(LATE, "UA"), value)
        await redis.rpush(key_of(LATE, "a list"), "x")
    cached = RedisPredictions(redis_url, timeout_seconds=PATIENT)
    assert (None, None) == (await cached.get(LATE, "UA"), await cached.get(LATE, "a list"))
    await cached.close()


async def test_a_redis_that_stalls_is_not_waited_for_and_one_that_is_down_is_no_error(redis_url: str) -> None:
    written = CachedPrediction(0.875, 1)
    async with Redis.from_url(redis_url) as redis:
        await redis.set(key_of(LATE, "UA"), encode(written.score, written.scored_at_micros))
    address = urlsplit(redis_url)
    assert address.hostname and address.port
    async with FaultProxy(address.hostname, address.port) as proxy:
        cached = RedisPredictions(
            redis_url.replace(f":{address.port}/", f":{proxy.port}/"), timeout_seconds=0.1
        )

        async def read() -> CachedPrediction | None:
            return await cached.get(LATE, "UA")

        assert written == await eventually(read)
        proxy.stall()
        assert await read() is None
        assert 1 == len(cached._reads), "the read goes on while its caller has his answer"
        proxy.cut()
        for _ in range(10):
            assert await read() is None
        proxy.heal()
        assert written == await eventually(read)
        await cached.close()
