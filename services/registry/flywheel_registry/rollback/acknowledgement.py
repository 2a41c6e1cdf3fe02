"""Waits until the live gateways apply a routing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from flywheel_common.clock import Clock
from flywheel_registry.serving.gateways import Gateway
from flywheel_registry.serving.ports import Gateways

POLL_SECONDS = 0.05
"""How often stored reports are read, for gateways that report to another replica."""
SEEN_SECONDS = 3600.0
"""Gateways without a heartbeat in this time are left out of the answer."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Which gateways apply the routing: `complete` when every live one does, or none is live."""

    complete: bool
    seconds: float
    gateways: Sequence[Gateway]


class Acknowledgements:
    """Waits for gateways."""

    def __init__(self, clock: Clock, gateways: Gateways) -> None:
        self._clock = clock
        self._gateways = gateways

    async def wait(
        self, model: str, generation: int, *, since: float, timeout_seconds: float
    ) -> Acknowledgement:
        """Wait until every live gateway of the model's project applies at least `generation`, or the timeout.

        `since` is the monotonic time from which the answer's `seconds` count.
        """
        heard = asyncio.Event()
        unsubscribe = self._gateways.on_heartbeat(heard.set)
        deadline = self._clock.monotonic() + timeout_seconds
        try:
            while True:
                heard.clear()
                watching = watching_model(model, await self._gateways.recent(SEEN_SECONDS))
                now = self._clock.monotonic()
                complete = all(applies(gateway, model, generation) for gateway in watching if gateway.live)
                if complete or now >= deadline:
                    return Acknowledgement(complete, now - since, watching)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await heard.wait()
        finally:
            unsubscribe()


def watching_model(model: str, gateways: Sequence[Gateway]) -> list[Gateway]:
    """Return the gateways that watch the model's project, or all projects."""
    project = model.split("/")[1]
    return [gateway for gateway in gateways if gateway.project in ("", project)]


def applies(gateway: Gateway, model: str, generation: int) -> bool:
    """Return whether a gateway reported that it applies at least this generation of the model's routing."""
    return any(seen.model == model and seen.generation >= generation for seen in gateway.observed)
