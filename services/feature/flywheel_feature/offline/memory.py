"""In-memory stand-ins for the offline ports, held to the same contract tests as the real stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from flywheel_common.errors import AlreadyExists
from flywheel_feature.offline.ports import Segment
from flywheel_feature.offline.training_sets import TrainingSet


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


class MemoryArchive:
    """An archive whose files were written by whoever calls `add`."""

    def __init__(self) -> None:
        self._segments: dict[tuple[str, str], list[Segment]] = {}
        self._archived: dict[tuple[str, str], dict[int, int]] = {}
        self._ends: dict[tuple[str, str], dict[int, int]] = {}
        self._pushed: dict[tuple[str, str], list[str]] = {}

    def add(self, project: str, source: str, segment: Segment, offsets: Mapping[int, int]) -> None:
        """A committed segment; `offsets` has the next offset of each partition it reaches."""
        self._segments.setdefault((project, source), []).append(segment)
        self._archived.setdefault((project, source), {}).update(offsets)

    def topic_ends(self, project: str, source: str, offsets: Mapping[int, int]) -> None:
        self._ends[(project, source)] = dict(offsets)

    def push(self, project: str, view: str, uri: str) -> None:
        """A file of rows pushed to a batch view."""
        self._pushed.setdefault((project, view), []).append(uri)

    async def segments(self, project: str, source: str) -> Sequence[Segment]:
        return tuple(self._segments.get((project, source), ()))

    async def archived_offsets(self, project: str, source: str) -> Mapping[int, int]:
        return dict(self._archived.get((project, source), {}))

    async def end_offsets(self, project: str, source: str) -> Mapping[int, int]:
        known = self._ends.get((project, source))
        return dict(known if known is not None else self._archived.get((project, source), {}))

    async def pushed_uris(self, project: str, view: str) -> Sequence[str]:
        return tuple(self._pushed.get((project, view), ()))
