"""Cached batch predictions in Redis.

Key `prediction:{model resource name}:{entity keys}`, value 16 bytes little-endian: float64 calibrated score,
int64 microseconds since 1970 UTC at which it was computed. `requests.joined_keys` joins the entity keys.
"""

from __future__ import annotations

import asyncio
import struct
import time

from redis.asyncio import Redis
from redis.exceptions import RedisError

from flywheel_common.deadline import left_seconds
from flywheel_inference.fallback.choice import CachedPrediction
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker

_VALUE = struct.Struct("<dq")


def key_of(model: str, keys: str) -> str:
    """The Redis key of a prediction."""
    return f"prediction:{model}:{keys}"


def encode(score: float, scored_at_micros: int) -> bytes:
    """The Redis value of a prediction."""
    return _VALUE.pack(score, scored_at_micros)


class RedisCachedPredictions:
    """`prediction.CachedPredictions`. A read waits at most `timeout_seconds` and half of the running call's
    budget.

    A late read continues in the background, so that a connection that opens slowly is ready for the next
    read. A circuit breaker skips reads while Redis is down.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._redis = Redis.from_url(url, socket_connect_timeout=1.0, socket_timeout=1.0)
        self._timeout = timeout_seconds
        self._breaker = CircuitBreaker(threshold=5, open_seconds=1.0)
        self._reads: set[asyncio.Task[CachedPrediction | None]] = set()

    @property
    def pending_reads(self) -> int:
        """Reads that have not ended yet, including those whose caller no longer waits."""
        return len(self._reads)

    async def get(self, model: str, keys: str) -> CachedPrediction | None:
        if not self._breaker.allows(time.monotonic()):
            return None
        read = asyncio.create_task(self._read(model, keys))
        self._reads.add(read)
        read.add_done_callback(self._reads.discard)
        left = left_seconds()
        timeout = self._timeout if left is None else max(0.0, min(self._timeout, left / 2))
        done, _ = await asyncio.wait({read}, timeout=timeout)
        return read.result() if done else None

    async def connect(self) -> None:
        """Opens a connection before the first fallback needs it. Does not raise when Redis is down."""
        try:
            await self._redis.ping()
        except (RedisError, OSError):
            self._breaker.failed(time.monotonic())

    async def close(self) -> None:
        for read in self._reads:
            read.cancel()
        await asyncio.gather(*self._reads, return_exceptions=True)
        await self._redis.aclose()

    async def _read(self, model: str, keys: str) -> CachedPrediction | None:
        try:
            value = await self._redis.get(key_of(model, keys))
        except (RedisError, OSError):
            self._breaker.failed(time.monotonic())
            return None
        self._breaker.succeeded()
        if not isinstance(value, bytes) or len(value) != _VALUE.size:
            return None
        return CachedPrediction(*_VALUE.unpack(value))
