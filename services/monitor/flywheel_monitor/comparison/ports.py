"""The port of a variant's stored predictions."""

from __future__ import annotations

from typing import Protocol

from flywheel_monitor.comparison.variants import VariantRows
from flywheel_monitor.ingest.batches import Role


class VariantPredictions(Protocol):
    """Stored predictions by variant."""

    async def variant_rows(
        self, rollout: str, release: str, role: Role, since_us: int, generation: int
    ) -> VariantRows:
        """The stored predictions of one variant of a rollout with event time >= `since_us`, made
        under `generation` of the routing (0: any), with the
        labels that have arrived."""
        ...
