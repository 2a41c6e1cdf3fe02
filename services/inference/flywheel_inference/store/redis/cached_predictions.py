"""Cached batch predictions in Redis, as `flywheel_common.scoring.cached_prediction` encodes them."""

from __future__ import annotations

import asyncio
import time

from redis.asyncio import Redis
from redis.exceptions import RedisError

from flywheel_common.deadline import left_seconds
from flywheel_common.scoring.cached_prediction import CachedPrediction, decode, key_of
from flywheel_inference.batching.batcher import Batcher, Entry, Expired
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker


class RedisCachedPredictions:
    """`prediction.CachedPredictions`. Reads of the same moment share one MGET. A read waits at most
    `timeout_seconds` and half of the running call's budget.

    A late MGET continues in the background, so that a connection that opens slowly is ready for the next
    read. A circuit breaker skips reads while Redis is down.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._redis = Redis.from_url(url, socket_connect_timeout=1.0, socket_timeout=1.0)
        self._timeout = timeout_seconds
        self._breaker = CircuitBreaker(threshold=5, open_seconds=1.0)
        self._batcher: Batcher[str, CachedPrediction | None] = Batcher(self._read, max_rows=1000)
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> bool:
        """No read runs, not even one whose caller no longer waits."""
        return self._batcher.idle

    async def get(self, model: str, keys: str) -> CachedPrediction | None:
        if not self._breaker.allows(time.monotonic()):
            return None
        left = left_seconds()
        timeout = self._timeout if left is None else max(0.0, min(self._timeout, left / 2))
        try:
            return await self._batcher.submit(key_of(model, keys), self._loop.time() + timeout)
        except Expired:
            return None

    async def connect(self) -> None:
        """Opens a connection before the first fallback needs it. Does not raise when Redis is down."""
        try:
            await self._redis.ping()
        except (RedisError, OSError):
            self._breaker.failed(time.monotonic())

    async def close(self) -> None:
        await self._batcher.close()
        await self._redis.aclose()

    async def _read(
        self, entries: list[Entry[str, CachedPrediction | None]]
    ) -> list[CachedPrediction | None]:
        try:
            values = await self._redis.mget([entry.item for entry in entries])
        except (RedisError, OSError):
            self._breaker.failed(time.monotonic())
            return [None] * len(entries)
        self._breaker.succeeded()
        return [decode(value) for value in values]
