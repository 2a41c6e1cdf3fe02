"""Ports of jobs: their store, their supervision, training sets, weights of model versions, logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from flywheel_common.granted.access import Access
from flywheel_common.paging import Page
from flywheel_job.job_logs.chunks import LogPart
from flywheel_job.launch import Column
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.attempt import Attempt, Watch
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.run import RunName


class JobStore(Protocol):
    """Stores jobs. Every method is one transaction; the caller passes the time.

    - `create` stores the job and its run together and is idempotent by request_id. `details` is a JSON object
      for the supervisor. Raises UnknownExperiment, RequestIdReused, and CancelledOnRequest if the pipeline
      run of the job has ended or is to be cancelled, so that no job outlives its pipeline run.
    - `list` returns the jobs that match all terms, newest first; the fields are `job.FILTER_FIELDS`.
    - `find_by_request` returns the job of an earlier equal request. Raises RequestIdReused.
    - `request_cancel` is idempotent by request_id; a repeated request returns the job as it is now. Raises
      UnknownJob, JobEnded, RequestIdReused.
    """

    async def create(
        self, job: Job, details: Mapping[str, Any], request_id: str, body: bytes, now: datetime
    ) -> Job: ...

    async def find_by_request(self, request_id: str, body: bytes) -> Job | None: ...

    async def get(self, name: JobName) -> Job | None: ...

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[Job]: ...

    async def request_cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job: ...


OF_TRIALS = "(steps of running trials)"
"""Entry of `last_steps` that is no metric."""


@dataclass(frozen=True)
class ActiveJob:
    """A job that has not ended, with what the supervisor needs of it."""

    job: Job
    details: Mapping[str, Any]
    attempt: Attempt | None = None
    """The active attempt."""
    watch: Watch = field(default_factory=Watch)


class Supervision(Protocol):
    """The supervisor's access to the jobs. Every write is one transaction under the fencing token of one
    lease.

    A write raises LeaseLost, and changes nothing, once another supervisor has taken the lease.

    - `active` returns the jobs that have not ended, by descending priority, then by age.
    - `begin_attempt` records the next attempt of a job without an active one, before the engine hears of it.
      It returns an active attempt unchanged, and None if the job has ended.
    - `grant` records what an attempt may do on the object store; it does nothing for one that has ended.
    - `mark_running` sets attempt and job RUNNING. `observe` stores the watch of an attempt and the progress
      of its job. `set_waiting` writes a message into the progress.
    - `end_attempt` ends an attempt without success; its job is QUEUED again.
    - `end` ends job, attempt and run together, and only if the job has not ended; it returns whether it did.
      Of each metric, points of earlier attempts remain up to the step at which the last attempt began.
    - `last_steps` is the last step of every metric of a run; OF_TRIALS is the sum over the running trials
      below it, if there are steps. Metrics of the machine (`system/`) are left out: they show no progress.
    - `end` of a TUNE job also ends its running trials and their runs as CANCELLED.
    """

    async def active(self) -> Sequence[ActiveJob]: ...

    async def begin_attempt(self, name: JobName, now: datetime) -> Attempt | None: ...

    async def grant(self, name: JobName, number: int, access: Access) -> None: ...

    async def mark_running(self, name: JobName, number: int, now: datetime) -> None: ...

    async def observe(
        self, name: JobName, number: int, watch: Watch, progress: Mapping[str, Any]
    ) -> None: ...

    async def set_waiting(self, name: JobName, message: str) -> None: ...

    async def end_attempt(
        self, name: JobName, number: int, reason: str, message: str, now: datetime
    ) -> None: ...

    async def end(self, name: JobName, state: JobState, outcome: Outcome, now: datetime) -> bool: ...

    async def last_steps(self, run: RunName) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class TrainingSet:
    """The parts of the feature service's description of a training set that jobs and pipelines need."""

    name: str
    uri: str
    columns: tuple[Column, ...]
    row_count: int
    content_hash: str
    feature_set: str
    naive: bool = False
    extra_columns: tuple[Column, ...] = ()
    """Columns of the spine that are no features; one of them may have the weights of the rows."""
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The values of the text and bool columns that have few, most frequent first."""


class TrainingSets(Protocol):
    """The training sets of the feature service.

    `get` raises UnknownTrainingSet, ShortFeatureNames, and PeerUnavailable.
    """

    async def get(self, name: str) -> TrainingSet: ...


class Weights(Protocol):
    """The weights of registered model versions.

    `of` returns (uri, sha256) of a version's weights on this service's S3, or None if the version has none.
    Raises UnknownModelVersion, DigestMismatch, PeerUnavailable, and S3Unavailable.
    """

    async def of(self, model_version: str) -> tuple[str, str] | None: ...


class JobLogs(Protocol):
    """The log streams of jobs.

    `read` returns text from an offset on, whole lines if `ended` is false, at most about 1 MiB. It is empty
    if there is no more yet or the store does not answer, so that a job can be watched in any case.
    """

    async def read(self, job: JobName, stream: str, offset: int, *, ended: bool) -> LogPart: ...
