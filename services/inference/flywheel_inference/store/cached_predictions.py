"""Batch predictions kept in Redis.

Key `prediction:{model resource name}:{entity keys joined by |}`, value 16 bytes little-endian: float64 calibrated score,
int64 microseconds since 1970 UTC at which it was computed.
"""

from __future__ import annotations

import asyncio
import struct

from redis.asyncio import Redis
from redis.exceptions import RedisError

from flywheel_inference.fallback import CachedPrediction

_VALUE = struct.Struct("<dq")


def key_of(model: str, subject: str) -> str:
    """Where a batch prediction lies."""
    return f"prediction:{model}:{subject}"


def encode(score: float, scored_at_micros: int) -> bytes:
    """What lies there."""
    return _VALUE.pack(score, scored_at_micros)


class RedisPredictions:
    """`prediction.CachedPredictions`."""

    def __init__(self, url: str, *, timeout_seconds: float = 0.005) -> None:
        self._redis = Redis.from_url(url, socket_connect_timeout=1.0)
        self._timeout = timeout_seconds

    async def get(self, model: str, subject: str) -> CachedPrediction | None:
        try:
            async with asyncio.timeout(self._timeout):
                value = await self._redis.get(key_of(model, subject))
        except (RedisError, OSError, TimeoutError):
            return None
        if not isinstance(value, bytes) or len(value) != _VALUE.size:
            return None
        return CachedPrediction(*_VALUE.unpack(value))

    async def close(self) -> None:
        await self._redis.aclose()
