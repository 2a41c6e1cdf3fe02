"""Removal of deleted runs for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from flywheel_common.clock import Clock
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.outcome import Artifact
from flywheel_trainer.runs.errors import InvalidPurge
from flywheel_trainer.runs.ports import RunEdits
from flywheel_trainer.runs.run import RunName
from flywheel_trainer.runs.run_artifacts import stored_key

SHORTEST = timedelta(hours=1)
"""How long a run must have been deleted, and a file must not have been uploaded again: between an upload and
the change of its run, no run names the file."""


@dataclass(frozen=True)
class Purged:
    """Runs that were removed, and the size of their files."""

    runs: tuple[RunName, ...]
    artifact_bytes: int


class RunPurge:
    """Removes runs with their points and files."""

    def __init__(self, edits: RunEdits, objects: ObjectStore, bucket: str, clock: Clock) -> None:
        self._edits, self._objects, self._bucket, self._clock = edits, objects, bucket, clock

    async def purge(self, project: str, deleted_for: timedelta, limit: int, *, dry_run: bool) -> Purged:
        """Remove at most `limit` runs that were deleted at least so long ago. Raises InvalidPurge."""
        if deleted_for < SHORTEST:
            raise InvalidPurge("deleted_for must be at least one hour.", field="deleted_for")
        before = self._clock.now() - deleted_for
        found = await self._edits.deleted_before(project, before, limit)
        if dry_run:
            sizes = [one.size_bytes for run in found for one in run.artifacts]
            return Purged(tuple(run.name for run in found), sum(sizes))
        size = 0

        async def remove(artifacts: Sequence[Artifact]) -> None:
            nonlocal size
            for artifact in artifacts:
                size += await self._remove(artifact)

        removed = [run.name for run in found if await self._edits.purge(run.name, before, remove)]
        return Purged(tuple(removed), size)

    async def _remove(self, artifact: Artifact) -> int:
        """Remove the file of an artifact; returns its size, or 0 if it is not one that was uploaded."""
        key = stored_key(artifact.sha256)
        if artifact.uri != f"s3://{self._bucket}/{key}":
            return 0
        info = await self._objects.head(key)
        if info is None or info.modified > self._clock.now() - SHORTEST:
            return 0
        await self._objects.delete(key)
        return info.size
