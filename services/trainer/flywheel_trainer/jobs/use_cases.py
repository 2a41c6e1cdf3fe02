"""Use cases of jobs. `jobs.supervision` runs the jobs that are queued here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from flywheel_common.clock import Clock
from flywheel_common.ids import Ids
from flywheel_common.paging import Page
from flywheel_trainer.jobs.errors import InvalidSpec, UnknownJob
from flywheel_trainer.jobs.job import ENDED, Job, JobName
from flywheel_trainer.jobs.ports import JobLogs, JobStore, TrainingSets, Weights
from flywheel_trainer.jobs.train_spec import TrainSpec, check_spec, check_weight_column
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.run import RunName


class Jobs:
    """Submits, reads, watches and cancels jobs."""

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
        """Queue a TRAIN job and create its run.

        Raises InvalidSpec, UnknownTrainingSet, UnknownExperiment, UnknownModelVersion, and Unavailable if the
        feature service, or for a warm start the registry or S3, does not answer; then nothing is queued.
        """
        known = await self._store.find_by_request(request_id, body)
        if known is not None:
            return known
        check_spec(spec)
        training_set = await self._training_sets.get(spec.training_set)
        if spec.workers > training_set.row_count:
            raise InvalidSpec(
                f"train.workers is {spec.workers}, but each worker needs a row and {spec.training_set} has "
                f"{training_set.row_count}.",
                field="train.workers",
            )
        check_weight_column(spec, training_set.extra_columns)
        warm: dict[str, str] | None = None
        if spec.warm_start:
            found = await self._weights.of(spec.warm_start)
            if found is None:
                raise InvalidSpec(f"{spec.warm_start} has no weights to start from: leave warm_start empty.")
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
        """Raises UnknownJob."""
        job = await self._store.get(name)
        if job is None:
            raise UnknownJob.of(name)
        return job

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[Job]:
        return await self._store.list(project, terms, size, token)

    async def cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job:
        """Request the end of all processes of the job; it is CANCELLED when they have ended.

        A repeated request returns the job as it is now. Raises UnknownJob, JobEnded.
        """
        return await self._store.request_cancel(name, request_id, body)

    async def watch(
        self, name: JobName, log_offset: int, poll_seconds: float
    ) -> AsyncIterator[tuple[Job, bytes, int]]:
        """Yield (job, new log bytes, offset after them) now and at every change, until the job has ended."""
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
