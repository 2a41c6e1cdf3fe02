"""In-memory stand-ins for the offline ports, held to the same contract tests as the real stores."""

from __future__ import annotations

from datetime import datetime

from flywheel_common.errors import AlreadyExists
from flywheel_feature.offline.model import TrainingSet


class MemoryTrainingSets:
    def __init__(self) -> None:
        self._sets: dict[tuple[str, str], TrainingSet] = {}

    async def create(self, training_set: TrainingSet) -> None:
        key = (training_set.project, training_set.id)
        if key in self._sets:
            raise AlreadyExists(
                f"{training_set.name} exists: training sets are immutable, choose another id.",
                reason="TRAINING_SET_EXISTS",
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
