"""Ports of jobs: their store, training sets, weights of model versions, logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from flywheel_common.paging import Page
from flywheel_job.launch import Column
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.run import RunName


class JobStore(Protocol):
    """Stores jobs. Every method is one transaction; the caller passes the time.

    - `create` stores the job and its run together and is idempotent by request_id. Raises UnknownExperiment,
      RequestIdReused. `details` is a JSON object for the supervisor.
    - `list` returns the jobs that match all terms, newest first; the fields are `job.FILTER_FIELDS`.
    - `find_by_request` returns the job of an earlier equal request. Raises RequestIdReused.
    - `request_cancel` is idempotent by request_id; a repeated request returns the job as it is now. Raises
      UnknownJob, JobEnded, RequestIdReused.
    - `active` returns the jobs that have not ended with their details, by descending priority, then by age.
    - `mark_started` sets a QUEUED job RUNNING; `set_waiting` writes a message into the progress of an active
      job; `heartbeat` sets the progress of a RUNNING job and is a heartbeat of its run.
    - `end` ends job and run together, and only if the job has not ended; it returns whether it did.
    - `epochs_done` is the last step of the metric `train_loss` of a run.
    """

    async def create(
        self, job: Job, details: Mapping[str, Any], request_id: str, body: bytes, now: datetime
    ) -> Job: ...

    async def find_by_request(self, request_id: str, body: bytes) -> Job | None: ...

    async def get(self, name: JobName) -> Job | None: ...

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[Job]: ...

    async def request_cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job: ...

    async def active(self) -> Sequence[tuple[Job, Mapping[str, Any]]]: ...

    async def mark_started(self, name: JobName, now: datetime) -> None: ...

    async def set_waiting(self, name: JobName, message: str) -> None: ...

    async def heartbeat(self, name: JobName, progress: Mapping[str, Any], now: datetime) -> None: ...

    async def end(self, name: JobName, state: JobState, outcome: Outcome, now: datetime) -> bool: ...

    async def epochs_done(self, run: RunName) -> int: ...


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
    """The log of a job as bytes, from its beginning.

    It is empty if there is no log yet or its store does not answer, so that a job can be watched in any case.
    """

    async def read(self, job: JobName) -> bytes: ...
