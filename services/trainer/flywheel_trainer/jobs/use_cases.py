"""Use cases of jobs. `jobs.supervision` runs the jobs that are queued here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from flywheel_common.clock import Clock
from flywheel_common.deadline import budget, left_seconds
from flywheel_common.ids import Ids
from flywheel_common.paging import Page
from flywheel_common.ray.errors import EngineUnavailable
from flywheel_trainer.jobs.engine import Engine
from flywheel_trainer.jobs.errors import InfeasibleResources, UnknownJob
from flywheel_trainer.jobs.job import ENDED, Job, JobName
from flywheel_trainer.jobs.kinds import Kinds, Spec
from flywheel_trainer.jobs.logs import check_stream
from flywheel_trainer.jobs.ports import JobLogs, JobStore
from flywheel_trainer.jobs.resources import Node, Quota, missing
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.run import RunName

ENGINE_SECONDS = 3.0
"""How long a submission waits for the engine's list of machines."""


class Jobs:
    """Submits, reads, watches and cancels jobs."""

    def __init__(
        self,
        store: JobStore,
        kinds: Kinds,
        engine: Engine,
        quota_of: Callable[[str], Quota],
        logs: JobLogs,
        ids: Ids,
        clock: Clock,
    ) -> None:
        self._store, self._kinds, self._engine, self._quota_of = store, kinds, engine, quota_of
        self._logs, self._ids, self._clock = logs, ids, clock
        self.queued = asyncio.Event()
        """Set when this process has queued a job, so that its supervisor does not wait for the next tick."""

    async def submit(
        self,
        project: str,
        spec: Spec,
        priority: int,
        request_id: str,
        body: bytes,
        *,
        pipeline_run: str = "",
    ) -> Job:
        """Queue a job and create its run.

        Raises InvalidSpec, UnknownTrainingSet, UnknownExperiment, UnknownModelVersion, InfeasibleResources,
        CancelledOnRequest if the pipeline run ends meanwhile, and Unavailable if the feature service, or for
        a warm start the registry or S3, does not answer; then nothing is queued.
        """
        known = await self._store.find_by_request(request_id, body)
        if known is not None:
            return known
        kind = self._kinds[spec.KIND]
        details = await kind.validate(spec)
        lack = missing(kind.request(spec), await self._nodes(), self._quota_of(project))
        if lack:
            raise InfeasibleResources(lack)
        number = self._ids.new()
        job = Job(
            JobName(project, f"job-{number}"),
            spec,
            RunName(project, f"run-{number}"),
            kind=spec.KIND,
            priority=priority,
            pipeline_run=pipeline_run,
        )
        created = await self._store.create(job, details, request_id, body, self._clock.now())
        self.queued.set()
        return created

    async def _nodes(self) -> Sequence[Node]:
        """The machines of the cluster; empty if the engine does not answer soon: the job waits for it
        then."""
        left = left_seconds()
        try:
            with budget(ENGINE_SECONDS if left is None else min(ENGINE_SECONDS, left / 2)):
                return await self._engine.nodes()
        except EngineUnavailable:
            return ()

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
        self, name: JobName, log_stream: str, log_offset: int, poll_seconds: float
    ) -> AsyncIterator[tuple[Job, bytes, int]]:
        """Yield (job, new log bytes, offset after them) now and at every change, until the job has ended.

        Raises UnknownJob, InvalidLogStream.
        """
        stream, offset = check_stream(log_stream), log_offset
        last: Job | None = None
        while True:
            job = await self.get(name)
            part = await self._logs.read(name, stream, offset, ended=job.state in ENDED)
            offset = part.offset
            if part.data or job != last:
                yield job, part.data, offset
            last = job
            if part.data:
                continue  # there may be more
            if job.state in ENDED:
                return
            await asyncio.sleep(poll_seconds)
