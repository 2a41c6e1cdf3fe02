"""`CheckpointStore` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from flywheel_common.paging import Page, cut, decode_token
from flywheel_trainer.checkpoints.checkpoint import Checkpoint
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.job import JobName


class MemoryCheckpoints:
    """`CheckpointStore` over a `MemoryTracking`."""

    def __init__(self, tracking: MemoryTracking) -> None:
        self._tracking = tracking
        self._records: dict[tuple[JobName, str], dict[str, Checkpoint]] = {}

    async def replace(
        self, job: JobName, folder: str, checkpoints: Sequence[Checkpoint], attempt: str, now: datetime
    ) -> None:
        self._tracking.check_attempt(attempt, self._tracking.jobs[job].job.run)
        known = self._records.get((job, folder), {})
        self._records[job, folder] = {
            one.name: known.get(one.name) or replace(one, created_at=min(one.created_at, now))
            for one in checkpoints
        }

    async def list(self, job: JobName, size: int, token: str) -> Page[Checkpoint]:
        folder, name = decode_token(token, query=str(job)) or ["", ""]
        found = [
            one
            for (owner, _), records in self._records.items()
            for one in records.values()
            if owner == job and (one.folder, one.name) > (str(folder), str(name))
        ]
        found.sort(key=lambda one: (one.folder, one.name))
        return cut(found[: size + 1], size, lambda one: (one.folder, one.name), query=str(job))
