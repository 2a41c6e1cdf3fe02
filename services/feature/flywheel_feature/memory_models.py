"""`lineage.Models` in memory, for unit tests. Held to the same contract suite as the registry's stub."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_feature.lineage import ModelUse


class MemoryModels:
    def __init__(self) -> None:
        self._uses: list[tuple[str, ModelUse]] = []

    def add(self, project: str, use: ModelUse) -> None:
        """A model version that uses a feature set of `project`."""
        self._uses.append((project, use))

    async def feature_uses(self, project: str) -> Sequence[ModelUse]:
        return [use for of, use in self._uses if of == project]
