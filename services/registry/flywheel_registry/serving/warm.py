"""Former releases that gateways keep loaded: those that no rollback may return to are dropped."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from flywheel_registry.serving.history import warm_releases
from flywheel_registry.serving.ports import ServingRecords
from flywheel_registry.serving.routing import Routing
from flywheel_registry.stages.transitions import Stage


async def usable_warm_releases(records: ServingRecords, model: str, routing: Routing) -> list[int]:
    """Return the releases to keep loaded, newest first; none is deleted or of a rejected version."""
    spans = await records.spans(model)
    unusable: set[int] = set()
    while True:
        chosen = warm_releases([span for span in spans if span.release not in unusable], routing)
        found = {number for number in chosen if not await usable(records, model, number)}
        if not found:
            return chosen
        unusable |= found


async def usable(records: ServingRecords, model: str, number: int) -> bool:
    """Return whether a rollback may return to this release: it exists, and its version was not rejected."""
    release = await records.release(model, number)
    version = await records.version(model, release.version) if release is not None else None
    return version is not None and version.stage is not Stage.REJECTED


async def drop_from_warm(records: ServingRecords, model: str, releases: Collection[int]) -> None:
    """Tell the gateways when one of these releases, which are about to become unusable, is kept loaded."""
    routing = await records.routing(model)
    if routing.champion is None:
        return
    if not set(releases).isdisjoint(await usable_warm_releases(records, model, routing)):
        await records.set_routing(model, replace(routing, generation=routing.generation + 1))
