"""The store of experiments and runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_job.outcome import Artifact, MetricPoint
from flywheel_trainer.runs.filter_expression import Condition
from flywheel_trainer.runs.metric_points import LoggedPoints
from flywheel_trainer.runs.run import Experiment, Run, RunEdit, RunName, RunUpdate
from flywheel_trainer.runs.search import Order


class RunStore(Protocol):
    """Stores experiments, runs and metric points in one transaction per method; the caller passes the time.

    - `create_experiment` returns an existing equal experiment and raises ExperimentExists for a different
      one.
    - `create_experiment` and `create_run` return the first result for a repeated request_id and raise
      RequestIdReused for another body. `create_run` raises UnknownExperiment.
    - `create_run` raises RunExists for a name that another request has used, and UnknownRun for its parent.
    - `log` keeps the first value of a (key, step) and returns how many points were new, and how many were
      ignored because they have another value. `log` and `update` are heartbeats; they raise UnknownRun,
      RunDeleted, RunContinued (a generation other than the run's, unless it is 0) and RunEnded. A LOST run
      without a job is RUNNING again after them. If `attempt` is the engine id of an attempt, `log` raises
      AttemptEnded unless this attempt is active, and ForeignRun unless the run is that of its job; its points
      replace those of earlier attempts.
    - `update` keeps the first value of a param and the last value of a tag. It is idempotent by request_id: a
      repeated request returns the run as it is now, and another body raises RequestIdReused.
    - `expire` ends the runs whose lease has expired (`runs.lease.has_expired`) as LOST and returns their
      names, without the runs of jobs that have not ended: their end is the end of the job.
    """

    async def create_experiment(
        self, experiment: Experiment, request_id: str, body: bytes, now: datetime
    ) -> Experiment: ...

    async def list_experiments(self, project: str, size: int, token: str) -> Page[Experiment]: ...

    async def create_run(self, run: Run, request_id: str, body: bytes, now: datetime) -> Run: ...

    async def get_run(self, name: RunName) -> Run | None: ...

    async def list_runs(
        self,
        project: str,
        conditions: Sequence[Condition],
        order: Order | None,
        size: int,
        token: str,
        *,
        show_deleted: bool = False,
    ) -> Page[Run]: ...

    async def log(
        self,
        name: RunName,
        points: Sequence[MetricPoint],
        now: datetime,
        attempt: str = "",
        generation: int = 0,
    ) -> LoggedPoints: ...

    async def points(self, name: RunName, key: str, size: int, token: str) -> Page[MetricPoint]: ...

    async def update(
        self, name: RunName, update: RunUpdate, now: datetime, request_id: str = "", body: bytes = b""
    ) -> Run: ...

    async def expire(self, now: datetime, not_before: datetime) -> list[str]: ...


Remove = Callable[[Sequence[Artifact]], Awaitable[None]]


class RunEdits(Protocol):
    """Changes of runs by people, and by processes that continue a run; one transaction per method.

    All raise UnknownRun. `edit` and `continue_run` are idempotent by request_id: a repeated request returns
    the run as it is now, and another body raises RequestIdReused.

    - `edit` changes a run in any state and is no heartbeat.
    - `set_deleted` with a time raises RunActive while the run is RUNNING, and keeps an earlier time; None
      restores the run.
    - `continue_run` makes the run RUNNING with the next generation, and removes the points after
      `rewind_to_step` if it is given, except those of `system/`, whose steps are times; the last values and
      the extremes of metrics follow. Raises RunOfJob, RunDeleted.
    - `deleted_before` has the runs that were deleted before a time, oldest deletion first; those of jobs and
      trials are left out.
    - `purge` removes such a run with its points, and does nothing (False) for any other one, such as a run
      that was restored meanwhile. Before the end of its transaction it awaits `remove` with those artifacts
      whose digest no other run has; if that fails, the run stays.
    - `add_artifact` replaces an artifact of the same name. It is a heartbeat of a RUNNING run only. Raises
      RunDeleted.
    """

    async def edit(self, name: RunName, edit: RunEdit, request_id: str, body: bytes) -> Run: ...

    async def set_deleted(self, name: RunName, at: datetime | None) -> Run: ...

    async def continue_run(
        self, name: RunName, rewind_to_step: int | None, now: datetime, request_id: str, body: bytes
    ) -> Run: ...

    async def deleted_before(self, project: str, before: datetime, limit: int) -> list[Run]: ...

    async def purge(self, name: RunName, before: datetime, remove: Remove) -> bool: ...

    async def add_artifact(self, name: RunName, artifact: Artifact, now: datetime) -> None: ...
