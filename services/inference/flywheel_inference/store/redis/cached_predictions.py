"""Cached batch predictions in Redis.

Key `prediction:{model resource name}:{entity keys}`; `requests.joined_keys` joins the entity keys. Value,
little-endian: int64 microseconds since 1970 UTC at which it was computed, the 8 bytes of
`OutputSpec.fingerprint`, then the calibrated values as float64: one for BINARY and REGRESSION, one per class
or element else. A gateway ignores a value whose fingerprint is not that of the release.
"""

from __future__ import annotations

import asyncio
import struct
import time
from math import isfinite

from redis.asyncio import Redis
from redis.exceptions import RedisError

from flywheel_common.deadline import left_seconds
from flywheel_inference.batching.batcher import Batcher, Entry, Expired
from flywheel_inference.fallback.choice import CachedPrediction
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker

_HEAD = struct.Struct("<q8s")


def key_of(model: str, keys: str) -> str:
    """The Redis key of a prediction."""
    return f"prediction:{model}:{keys}"


def encode(prediction: CachedPrediction) -> bytes:
    """The Redis value of a prediction."""
    head = _HEAD.pack(prediction.scored_at_micros, prediction.output)
    return head + struct.pack(f"<{len(prediction.values)}d", *prediction.values)


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
        return [_decoded(value) for value in values]


def _decoded(value: object) -> CachedPrediction | None:
    if not isinstance(value, bytes) or len(value) <= _HEAD.size or (len(value) - _HEAD.size) % 8:
        return None
    scored_at, output = _HEAD.unpack_from(value)
    values = struct.unpack_from(f"<{(len(value) - _HEAD.size) // 8}d", value, _HEAD.size)
    return CachedPrediction(values, scored_at, output) if all(map(isfinite, values)) else None
