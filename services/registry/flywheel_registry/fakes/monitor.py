"""A monitor in memory: comparisons and experiments."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.rollout import Rollout


class MemoryMonitor:
    """`Monitor` that returns the comparison set for a rollout's name, else None."""

    def __init__(self) -> None:
        self.comparisons: dict[str, Comparison] = {}

    async def compare(self, rollout: Rollout) -> Comparison | None:
        return self.comparisons.get(rollout.name)


class MemoryExperiments:
    """`Experiments` set by release; `down`: the monitor does not answer."""

    def __init__(self) -> None:
        self.found: dict[str, list[ExperimentVerdict]] = {}
        self.down = False

    async def verdicts(self, release: str) -> Sequence[ExperimentVerdict] | None:
        return None if self.down else list(self.found.get(release, ()))
