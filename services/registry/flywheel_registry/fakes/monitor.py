"""A monitor in memory."""

from __future__ import annotations

from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.rollout import Rollout


class MemoryMonitor:
    """`Monitor` that returns the comparison set for a rollout's name, else None."""

    def __init__(self) -> None:
        self.comparisons: dict[str, Comparison] = {}

    async def compare(self, rollout: Rollout) -> Comparison | None:
        return self.comparisons.get(rollout.name)
