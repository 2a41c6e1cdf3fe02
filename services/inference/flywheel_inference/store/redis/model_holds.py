"""Holds of the gateways on the models of one Triton, in Redis.

Keys start with `triton:{address}:`; the braces keep all keys of a Triton on one node of a cluster. `since` is
when the holds began; `holds:{model}` is a sorted set of gateway ids by the second at which their hold ends;
`unloading:{model}` is the gateway that unloads the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.models.errors import HoldsUnknown, ModelBeingUnloaded

log = get_logger(__name__)

UNLOAD_SECONDS = 60
"""Time limit of an unload whose gateway does not report its end; `ReleaseLoader` has the same limit."""


class RedisModelHolds:
    """`models.ModelHolds`. A hold ends `hold_seconds` after its last renewal; `run` renews three times within
    that time. While Redis is down, models can be loaded but not unloaded."""

    def __init__(self, url: str, triton: str, gateway_id: str, *, hold_seconds: int) -> None:
        self._prefix = f"triton:{{{triton}}}:"
        self._gateway = gateway_id
        self._hold_seconds = hold_seconds
        self._held: set[str] = set()
        self._redis = redis = Redis.from_url(url, socket_connect_timeout=1.0, socket_timeout=1.0)
        self._hold = _script(redis, "hold_models")
        self._drop = _script(redis, "drop_hold")

    async def hold(self, model: str) -> None:
        self._held.add(model)
        if await self._renew([model]):
            raise ModelBeingUnloaded(f"Another gateway unloads {model} now.")

    async def drop(self, model: str) -> bool:
        self._held.discard(model)
        keys = [self._since, self._holds(model), self._mark(model)]
        try:
            answer = await self._drop(keys=keys, args=[self._gateway, self._hold_seconds, UNLOAD_SECONDS])
        except (RedisError, OSError) as error:
            raise HoldsUnknown(f"Redis does not answer: {error}") from None
        if answer < 0:
            raise HoldsUnknown(f"The holds on {model} are not complete yet.")
        return bool(answer)

    async def unloaded(self, model: str) -> None:
        try:
            await self._redis.delete(self._mark(model))
        except (RedisError, OSError) as error:
            log.warning("unload mark not removed: it expires", model=model, error=str(error))

    async def close(self) -> None:
        await self._redis.aclose()

    async def run(self) -> None:
        """Renews the holds until cancelled."""
        while True:
            await asyncio.sleep(self._hold_seconds / 3)
            if self._held:
                await self._renew(sorted(self._held))

    async def _renew(self, models: Collection[str]) -> list[int]:
        """The places of the models that another gateway is unloading."""
        keys = [self._since, *map(self._holds, models), *map(self._mark, models)]
        try:
            unloading: list[int] = await self._hold(keys=keys, args=[self._gateway, self._hold_seconds])
        except (RedisError, OSError) as error:
            log.warning("models not held: Redis does not answer", error=str(error))
            return []
        return unloading

    @property
    def _since(self) -> str:
        return f"{self._prefix}since"

    def _holds(self, model: str) -> str:
        return f"{self._prefix}holds:{model}"

    def _mark(self, model: str) -> str:
        return f"{self._prefix}unloading:{model}"


def _script(redis: Redis, name: str) -> AsyncScript:
    file = resources.files(__package__) / "lua" / f"{name}.lua"
    script: Any = redis.register_script(file.read_text(encoding="utf-8"))
    found: AsyncScript = script
    return found
