"""Ports of jobs: store, training sets, weights, logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from flywheel_common.paging import Page
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.recipes.outcome import Outcome
from flywheel_trainer.recipes.tabular.spec import Column
from flywheel_trainer.runs.run import RunName


@dataclass(frozen=True)
class TrainingSet:
    """What a job needs to know of a training set, as the feature service describes it."""

    name: str
    uri: str
    columns: tuple[Column, ...]
    row_count: int
    content_hash: str
    feature_set: str
    naive: bool = False


class JobStore(Protocol):
    """Keeps jobs. `create` makes the job and its run in one transaction, idempotent by request_id, and raises NotFound
    UNKNOWN_EXPERIMENT. `end` writes the end of job and run at once and only if the job has not ended; it answers
    whether it did. `waits` says in the progress what an active job waits for.
    `request_cancel` is idempotent by request_id and raises NotFound UNKNOWN_JOB and FailedPrecondition JOB_ENDED."""

    async def create(
        self, job: Job, details: Mapping[str, Any], request_id: str, body: bytes, now: datetime
    ) -> Job: ...

    async def by_request(self, request_id: str, body: bytes) -> Job | None: ...

    async def get(self, name: JobName) -> Job | None: ...

    async def list(self, project: str, size: int, token: str) -> Page[Job]: ...

    async def request_cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job: ...

    async def active(self) -> Sequence[tuple[Job, Mapping[str, Any]]]: ...

    async def started(self, name: JobName, now: datetime) -> None: ...

    async def waits(self, name: JobName, message: str) -> None: ...

    async def alive(self, name: JobName, progress: Mapping[str, Any], now: datetime) -> None: ...

    async def end(self, name: JobName, state: JobState, outcome: Outcome, now: datetime) -> bool: ...

    async def progress(self, run: RunName) -> int: ...


class TrainingSets(Protocol):
    """The feature service's training sets. Raises NotFound UNKNOWN_TRAINING_SET, FailedPrecondition
    SHORT_FEATURE_NAMES, Unavailable FEATURE_UNAVAILABLE."""

    async def get(self, name: str) -> TrainingSet: ...


class Weights(Protocol):
    """Weights of registered versions. Answers (uri, sha256) of a version's weights on this service's S3, or None when
    it has none. Raises NotFound UNKNOWN_MODEL_VERSION, DataLoss, Unavailable REGISTRY_UNAVAILABLE or S3_UNAVAILABLE."""

    async def of(self, model_version: str) -> tuple[str, str] | None: ...


class JobLogs(Protocol):
    """Log text of a job, whole, as bytes; empty when there is none (yet), or what keeps it does not answer: a job can be watched
    all the same."""

    async def read(self, job: JobName) -> bytes: ...
