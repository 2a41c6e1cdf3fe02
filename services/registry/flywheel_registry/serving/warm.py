"""Which former releases a rollback may return to."""

from __future__ import annotations

from flywheel_registry.serving.ports import ServingRecords
from flywheel_registry.stages.transitions import Stage


async def usable(records: ServingRecords, model: str, number: int) -> bool:
    """Return whether a rollback may return to this release: it exists, and its version was not rejected."""
    release = await records.release(model, number)
    version = await records.version(model, release.version) if release is not None else None
    return version is not None and version.stage is not Stage.REJECTED
