"""Waits until the gateways apply a routing.

A gateway that cannot reach the registry keeps serving what it had. So silence is no acknowledgement: a
routing is applied completely only when every gateway of the last hour reported it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from flywheel_common.clock import Clock
from flywheel_registry.serving.gateways import Gateway, watching_model
from flywheel_registry.serving.ports import Gateways

POLL_SECONDS = 0.05
"""How often stored reports are read, for gateways that report to another replica."""
WAITED_FOR_SECONDS = 5.0
"""Gateways that are silent for longer are not waited for."""
SEEN_SECONDS = 3600.0
"""Gateways without a heartbeat in this time are taken for stopped and left out of the answer."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The gateways of the last hour, and the ids of those that have not reported the routing."""

    seconds: float
    gateways: Sequence[Gateway]
    unacknowledged: Sequence[str]

    @property
    def complete(self) -> bool:
        """Whether every gateway of the last hour applies the routing; true without gateways."""
        return not self.unacknowledged


class Acknowledgements:
    """Waits for gateways."""

    def __init__(self, clock: Clock, gateways: Gateways) -> None:
        self._clock = clock
        self._gateways = gateways

    async def wait(
        self, model: str, generation: int, *, since: float, timeout_seconds: float
    ) -> Acknowledgement:
        """Wait until the gateways of the model's project apply at least `generation`, or the timeout.

        Gateways silent for longer than WAITED_FOR_SECONDS are not waited for. `since` is the monotonic time
        from which the answer's `seconds` count.
        """
        heard = asyncio.Event()
        unsubscribe = self._gateways.on_heartbeat(heard.set)
        deadline = self._clock.monotonic() + timeout_seconds
        try:
            while True:
                heard.clear()
                watching = watching_model(model, await self._gateways.recent(SEEN_SECONDS))
                missing = [gateway for gateway in watching if not applies(gateway, model, generation)]
                heard_lately = {g.id for g in await self._gateways.recent(WAITED_FOR_SECONDS)}
                now = self._clock.monotonic()
                if heard_lately.isdisjoint(g.id for g in missing) or now >= deadline:
                    return Acknowledgement(now - since, watching, [gateway.id for gateway in missing])
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await heard.wait()
        finally:
            unsubscribe()


def applies(gateway: Gateway, model: str, generation: int) -> bool:
    """Return whether a gateway reported that it applies at least this generation of the model's routing."""
    return any(seen.model == model and seen.generation >= generation for seen in gateway.observed)
