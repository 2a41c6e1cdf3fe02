"""The store of trials."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_job.outcome import Outcome
from flywheel_job.tuning.trial import Trial
from flywheel_trainer.jobs.job import JobName


class TrialStore(Protocol):
    """Stores trials with their runs. Every method is one transaction; the caller passes the time.

    - `record` stores a trial and its run, and ends the run with the outcome if the trial has ended. The run
      is below that of the job (`flywheel_job.tuning.launch.trial_run`). A trial that has ended does not
      change: it is returned as it is. Raises AttemptEnded unless `attempt` (an engine id) is active,
      ForeignRun unless it is an attempt of this job, and InvalidTrial unless the numbers of trials begin
      with 0 and have no gaps.
    - `list` returns a page by number, `all` every trial by number, `get` one or None.
    """

    async def record(
        self, job: JobName, trial: Trial, outcome: Outcome | None, attempt: str, now: datetime
    ) -> Trial: ...

    async def list(self, job: JobName, size: int, token: str) -> Page[Trial]: ...

    async def all(self, job: JobName) -> Sequence[Trial]: ...

    async def get(self, job: JobName, number: int) -> Trial | None: ...
