"""Jobs on the compute engine: accepted here, run there, ended by what they leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from flywheel_common.clock import Clock
from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_common.ids import Ids
from flywheel_common.paging import Page
from flywheel_trainer.names import JobName, ModelName, RunName
from flywheel_trainer.recipes.outcome import Outcome
from flywheel_trainer.recipes.tabular.spec import Column, Hyperparameters

TRAIN = "TRAIN"
MAX_WORKERS = 1024


class JobState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"


ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.LOST})


@dataclass(frozen=True)
class TrainSpec:
    """What a TRAIN job does; zero values are filled in by `with_defaults`."""

    experiment: str
    training_set: str
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    warm_start: str = ""
    workers: int = 1
    gpus_per_worker: int = 0


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


@dataclass(frozen=True)
class Job:
    """A job as people see it."""

    name: JobName
    spec: TrainSpec
    run: RunName
    kind: str = TRAIN
    state: JobState = JobState.QUEUED
    progress: Mapping[str, Any] = field(default_factory=dict)
    error_reason: str = ""
    error_message: str = ""
    priority: int = 0
    cancel_requested: bool = False
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


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


class Jobs:
    """Use cases of jobs. What happens on the engine is `supervision`'s."""

    def __init__(
        self,
        store: JobStore,
        training_sets: TrainingSets,
        weights: Weights,
        logs: JobLogs,
        ids: Ids,
        clock: Clock,
    ) -> None:
        self._store, self._training_sets, self._weights = store, training_sets, weights
        self._logs, self._ids, self._clock = logs, ids, clock

    async def submit(self, project: str, spec: TrainSpec, priority: int, request_id: str, body: bytes) -> Job:
        """Queue a TRAIN job. InvalidArgument INVALID_SPEC; NotFound UNKNOWN_TRAINING_SET, UNKNOWN_EXPERIMENT; Unavailable while
        what it needs to know of its training set and weights cannot be asked."""
        known = await self._store.by_request(request_id, body)
        if known is not None:
            return known
        check_spec(spec)
        training_set = await self._training_sets.get(spec.training_set)
        warm: dict[str, str] | None = None
        if spec.warm_start:
            found = await self._weights.of(spec.warm_start)
            if found is None:
                raise InvalidArgument(
                    f"{spec.warm_start} has no weights to start from: leave warm_start empty.",
                    reason="INVALID_SPEC",
                )
            warm = {"version": spec.warm_start, "uri": found[0], "sha256": found[1]}
        number = self._ids.new()
        job = Job(
            JobName(project, f"job-{number}"), spec, RunName(project, f"run-{number}"), priority=priority
        )
        details = {
            "uri": training_set.uri,
            "columns": [[c.name, c.data_type] for c in training_set.columns],
            "warm_start": warm,
        }
        return await self._store.create(job, details, request_id, body, self._clock.now())

    async def get(self, name: JobName) -> Job:
        """Raises NotFound UNKNOWN_JOB."""
        job = await self._store.get(name)
        if job is None:
            raise unknown_job(name)
        return job

    async def list(self, project: str, size: int, token: str) -> Page[Job]:
        return await self._store.list(project, size, token)

    async def cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job:
        """Ask for the end of every process of the job; it is CANCELLED once they are gone. A repeat of a request that was heard
        answers the job as it is now, ended or not."""
        return await self._store.request_cancel(name, request_id, body)

    async def watch(
        self, name: JobName, log_offset: int, poll_seconds: float
    ) -> AsyncIterator[tuple[Job, bytes, int]]:
        """(job, new log bytes, offset after them) now and at every change, until the job has ended."""
        last: Job | None = None
        offset = log_offset
        while True:
            job = await self.get(name)
            log = (await self._logs.read(name))[offset:]
            offset += len(log)
            if log or job != last:
                yield job, log, offset
            if job.state in ENDED:
                return
            last = job
            await asyncio.sleep(poll_seconds)


def check_spec(spec: TrainSpec) -> None:
    """Raises InvalidArgument INVALID_SPEC naming the field."""
    hyper = spec.hyperparameters
    problems = [
        (not spec.experiment, "experiment", "names the experiment of the run"),
        (not spec.training_set, "training_set", "names a training set"),
        (not 1 <= spec.workers <= MAX_WORKERS, "workers", f"is between 1 and {MAX_WORKERS}"),
        (
            not all(1 <= size <= 65_536 for size in hyper.hidden_sizes),
            "tabular.hidden_sizes",
            "are between 1 and 65536",
        ),
        (len(hyper.hidden_sizes) > 32, "tabular.hidden_sizes", "has at most 32 layers"),
        (not 1 <= hyper.epochs <= 100_000, "tabular.epochs", "is between 1 and 100000"),
        (hyper.batch_size < 1, "tabular.batch_size", "is at least 1"),
        (not 0 < hyper.learning_rate < 1e3, "tabular.learning_rate", "is above 0"),
        (not 0 <= hyper.weight_decay < 1e3, "tabular.weight_decay", "is not negative"),
        (not 0 <= hyper.dropout < 1, "tabular.dropout", "is at least 0 and below 1"),
        (not 0 < hyper.holdout_fraction < 1, "tabular.holdout_fraction", "is between 0 and 1"),
        (hyper.seed >= 1 << 32, "tabular.seed", "is below 2^32"),
    ]
    for wrong, name, rule in problems:
        if wrong:
            raise InvalidArgument(f"train.{name} {rule}.", reason="INVALID_SPEC", field=f"train.{name}")
    if spec.warm_start and "/versions/" not in spec.warm_start:
        raise InvalidArgument(
            f"train.tabular.warm_start names a model version ({ModelName.PATTERN.form}/versions/{{version}}).",
            reason="INVALID_SPEC",
        )


def unknown_job(name: JobName) -> NotFound:
    return NotFound(f"Job {str(name)!r} does not exist.", reason="UNKNOWN_JOB", job=name)
