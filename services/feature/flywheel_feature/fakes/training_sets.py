"""Training sets in memory, for unit tests (port: offline.ports.TrainingSets)."""

from __future__ import annotations

from datetime import datetime

from flywheel_feature.offline.errors import TrainingSetExists
from flywheel_feature.offline.model import TrainingSet


class MemoryTrainingSets:
    """Training sets in a dictionary."""

    def __init__(self) -> None:
        self._sets: dict[tuple[str, str], TrainingSet] = {}

    async def create(self, training_set: TrainingSet) -> None:
        key = (training_set.project, training_set.id)
        if key in self._sets:
            raise TrainingSetExists(
                f"{training_set.name} exists: training sets are immutable, choose another id."
            )
        self._sets[key] = training_set

    async def get(self, project: str, training_set_id: str) -> TrainingSet | None:
        return self._sets.get((project, training_set_id))

    async def list(
        self,
        project: str,
        *,
        feature_set: str = "",
        text: str = "",
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[TrainingSet]:
        found = [
            s
            for (owner, _), s in self._sets.items()
            if owner == project
            and (
                not feature_set
                or s.feature_set == feature_set
                or s.feature_set.startswith(f"{feature_set}/versions/")
            )
            and text.lower() in s.id
            and (before is None or (s.created_at, s.id) < before)
        ]
        return sorted(found, key=lambda s: (s.created_at, s.id), reverse=True)[:limit]
