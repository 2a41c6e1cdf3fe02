"""The store of the records of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_trainer.checkpoints.checkpoint import Checkpoint
from flywheel_trainer.jobs.job import JobName


class CheckpointStore(Protocol):
    """Stores records of checkpoints. Every method is one transaction; the job exists.

    - `replace` makes `checkpoints` the records of a folder of the job; one that is known already stays as it
      is. Their times are at most `now`. Raises AttemptEnded unless `attempt` (an engine id) is active, and
      ForeignRun unless it is an attempt of this job.
    - `list` returns a page by folder and name.
    - Records are removed together with their job.
    """

    async def replace(
        self, job: JobName, folder: str, checkpoints: Sequence[Checkpoint], attempt: str, now: datetime
    ) -> None: ...

    async def list(self, job: JobName, size: int, token: str) -> Page[Checkpoint]: ...
