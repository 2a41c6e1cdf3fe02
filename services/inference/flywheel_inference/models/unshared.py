"""Holds on the models of a model server that no other gateway uses."""

from __future__ import annotations

import asyncio


class UnsharedModels:
    """`models.ModelHolds` of the only gateway of a model server."""

    async def hold(self, model: str) -> None: ...

    async def drop(self, model: str) -> bool:
        return True

    async def unloaded(self, model: str) -> None: ...

    async def run(self) -> None:
        await asyncio.Event().wait()
