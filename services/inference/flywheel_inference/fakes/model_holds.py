"""Holds on the models of one model server, in memory."""

from __future__ import annotations

import asyncio

from flywheel_inference.models.errors import HoldsUnknown, ModelBeingUnloaded


class SharedHolds:
    """What the gateways of one model server share. `unknown`: the holds cannot be read."""

    def __init__(self) -> None:
        self.holders: dict[str, set[str]] = {}
        self.unloading: dict[str, str] = {}
        self.unknown = False


class MemoryModelHolds:
    """`models.ModelHolds` of one gateway."""

    def __init__(self, gateway_id: str, shared: SharedHolds) -> None:
        self._gateway = gateway_id
        self._shared = shared

    async def hold(self, model: str) -> None:
        self._shared.holders.setdefault(model, set()).add(self._gateway)
        if self._shared.unloading.get(model, self._gateway) != self._gateway:
            raise ModelBeingUnloaded(f"Another gateway unloads {model} now.")

    async def drop(self, model: str) -> bool:
        if self._shared.unknown:
            raise HoldsUnknown("The holds cannot be read.")
        holders = self._shared.holders.setdefault(model, set())
        holders.discard(self._gateway)
        if not holders:
            self._shared.unloading[model] = self._gateway
        return not holders

    async def unloaded(self, model: str) -> None:
        self._shared.unloading.pop(model, None)

    async def run(self) -> None:
        await asyncio.Event().wait()
