"""Jobs on the compute engine: accepted here, run there, ended by what they leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from flywheel_common.clock import Clock
from flywheel_common.errors import InvalidArgument
from flywheel_common.ids import Ids
from flywheel_common.paging import Page
from flywheel_trainer.jobs.errors import unknown_job
from flywheel_trainer.jobs.job import ENDED, Job, JobName
from flywheel_trainer.jobs.ports import JobLogs, JobStore, TrainingSets, Weights
from flywheel_trainer.jobs.train_spec import TrainSpec, check_spec
from flywheel_trainer.runs.run import RunName


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
