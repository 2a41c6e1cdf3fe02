"""Runs long jobs from a stored queue: submits, claims, carries out, watches and cancels them.

A handler is registered per kind and gets a JobContext. Handlers must be able to restart: a process may die at
any await, and another process then calls the handler again with the checkpoint saved last.

    # async def handler(job: JobContext) -> Mapping[str, object] | None
    runner.register("MATERIALIZE", handler)
    job = await runner.submit("MATERIALIZE", request, request_id, project="default")
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from flywheel_common.errors import FlywheelError, Internal
from flywheel_common.ids import Ids
from flywheel_common.tasks import TaskGroup
from flywheel_feature.jobs.errors import JobEnded, UnknownJob
from flywheel_feature.jobs.model import Job, JobState, Progress
from flywheel_feature.jobs.ports import MAX_ATTEMPTS, JobStore

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
HEARTBEAT_SECONDS = 0.5
POLL_SECONDS = 1.0
WATCH_SECONDS = 0.1
WRITE_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Pauses before the end of a job is written again."""


class JobCancelled(Exception):
    """Raised by `JobContext.check_cancelled` inside a handler; the runner ends the job as CANCELLED."""


class JobContext:
    """The job as its handler sees it."""

    def __init__(self, job: Job, owner: str, store: JobStore) -> None:
        self.job = job
        self.checkpoint = job.checkpoint
        """The checkpoint saved last, also by an earlier process; empty at the first start."""
        self._owner = owner
        self._store = store
        self.cancelled = False
        self._progress = job.progress

    @property
    def project(self) -> str:
        return self.job.project

    @property
    def request(self) -> bytes:
        return self.job.request

    @property
    def current_progress(self) -> Progress:
        return self._progress

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        """Report how far the job is; cheap, callable from any thread, stored with the next heartbeat."""
        self._progress = Progress(done, total, unit, message)

    def check_cancelled(self) -> None:
        """Raises JobCancelled when the job should stop; callable from any thread."""
        if self.cancelled:
            raise JobCancelled

    async def save_checkpoint(self, checkpoint: bytes) -> None:
        """Store where to resume; it is durable when this returns."""
        await self._store.save_checkpoint(self.job, self._owner, checkpoint)
        self.checkpoint = checkpoint

    async def forget_request(self) -> None:
        """Delete the request from the database; a later start of the handler gets an empty request."""
        await self._store.forget_request(self.job, self._owner)

    def stop(self) -> None:
        """Make `check_cancelled` raise from now on."""
        self.cancelled = True


Handler = Callable[[JobContext], Awaitable[Mapping[str, object] | None]]


class JobRunner:
    """Submits, runs and watches jobs; any number of processes may run one on the same store."""

    def __init__(
        self, store: JobStore, ids: Ids, now: Callable[[], datetime], *, concurrency: int = 2
    ) -> None:
        self._store = store
        self._ids = ids
        self._now = now
        self._owner = ids.new()
        self._handlers: dict[str, Handler] = {}
        self._wake = asyncio.Event()
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)

    def register(self, kind: str, handler: Handler) -> None:
        if kind in self._handlers:
            raise ValueError(f"kind {kind!r} already has a handler")
        self._handlers[kind] = handler

    async def submit(
        self,
        kind: str,
        request: bytes,
        request_id: str = "",
        *,
        project: str,
        training_set: str = "",
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> Job:
        """Queue a job, or return the job that the same request_id and request made before.

        `check` raises for a request that cannot be carried out. It is not called for a repeated request: that
        gets the first answer whatever has changed since. Raises InvalidArgument REQUEST_ID_REUSED when the
        request_id was used with another request.
        """
        digest = hashlib.sha256(request).digest()
        if check is not None:
            before = await self._store.repeated(project, kind, request_id, digest)
            if before is not None:
                return before
            await check()
        job = Job(project, self._ids.new(), kind, request, self._now(), training_set=training_set)
        stored = await self._store.create(job, request_id, digest)
        self._wake.set()
        return stored

    async def get(self, project: str, job_id: str) -> Job:
        return _known(await self._store.get(project, job_id), project, job_id)

    async def list(
        self, project: str, *, kind: str = "", state: str = "", before: str = "", limit: int = 50
    ) -> list[Job]:
        return await self._store.list(project, kind=kind, state=state, before=before, limit=limit)

    async def cancel(self, project: str, job_id: str) -> Job:
        """Request the cancellation of a job. Raises UnknownJob, JobEnded; cancelling twice is no error."""
        job = _known(await self._store.request_cancel(project, job_id), project, job_id)
        if job.state in (JobState.SUCCEEDED, JobState.FAILED, JobState.LOST):
            raise JobEnded(f"{job.name} has ended as {job.state}: there is nothing to cancel.")
        return job

    async def watch(self, project: str, job_id: str) -> AsyncIterator[Job]:
        """Yields the job now and after every change of state or progress until it has ended."""
        shown: tuple[JobState, Progress] | None = None
        while True:
            job = await self.get(project, job_id)
            if (job.state, job.progress) != shown:
                shown = (job.state, job.progress)
                yield job
            if job.state.ended:
                return
            await asyncio.sleep(WATCH_SECONDS)

    async def run(self) -> None:
        """Carry out jobs until cancelled; running jobs are then requeued for another process to resume.

        Can be called again after an exception.
        """
        # A job that was cancelled before its first step has not released its slot.
        self._slots = asyncio.Semaphore(self._concurrency)
        async with TaskGroup() as group:
            while True:
                await self._slots.acquire()
                job = None
                try:
                    job = await self._claim_next()
                finally:
                    if job is None:
                        self._slots.release()
                if job is not None:
                    group.create_task(self._carry_out(job), name=f"job-{job.id}")

    async def _claim_next(self) -> Job | None:
        self._wake.clear()
        try:
            job = await self._store.claim(self._owner, sorted(self._handlers), LEASE_SECONDS)
        except FlywheelError as error:
            _raise_unless_retryable(error, "no job is claimed")
        else:
            if job is not None:
                return job
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._wake.wait()
        return None

    async def _carry_out(self, job: Job) -> None:
        context = JobContext(job, self._owner, self._store)
        handler = asyncio.ensure_future(self._handlers[job.kind](context))
        heartbeat = asyncio.create_task(self._beat(job, context, handler), name=f"heartbeat-{job.id}")
        try:
            ended = await self._outcome(job, context, handler)
            if heartbeat.done():
                heartbeat.result()
            if ended is not None:
                await self._retry_write(lambda: self._store.finish(ended, self._owner))
        except FlywheelError as error:
            _raise_unless_retryable(error, f"{job.name} runs again when its lease ends")
        except asyncio.CancelledError:
            handler.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await handler
            with suppress(FlywheelError):
                await self._store.requeue(job, self._owner, 0.0)
            raise
        finally:
            heartbeat.cancel()
            self._slots.release()
            self._wake.set()

    async def _outcome(
        self, job: Job, context: JobContext, handler: asyncio.Future[Mapping[str, object] | None]
    ) -> Job | None:
        """The ended job; None when it was requeued or another process holds it."""

        def ended(state: JobState, reason: str = "", message: str = "") -> Job:
            return replace(
                job,
                state=state,
                progress=context.current_progress,
                ended_at=self._now(),
                error_reason=reason,
                error_message=message,
            )

        # asyncio.wait does not raise the handler's exception, and is cancelled only with this task.
        await asyncio.wait([handler])
        if handler.cancelled():
            return ended(JobState.CANCELLED) if context.cancelled else None
        error = handler.exception()
        if error is None:
            return replace(ended(JobState.SUCCEEDED), result=handler.result() or {})
        if isinstance(error, JobCancelled):
            return ended(JobState.CANCELLED)
        if isinstance(error, FlywheelError):
            if error.retryable and job.attempt < MAX_ATTEMPTS:
                log.warning("job %s is requeued: %s", job.name, error.message)
                await self._retry_write(lambda: self._store.requeue(job, self._owner, 2.0**job.attempt))
                return None
            return ended(JobState.FAILED, error.reason, error.message)
        error_id = self._ids.new()
        log.error("job %s failed, error id %s", job.name, error_id, exc_info=error)
        return ended(
            JobState.FAILED, Internal.reason, f"An internal error ended the job (error id {error_id})."
        )

    async def _beat(
        self, job: Job, context: JobContext, handler: asyncio.Future[Mapping[str, object] | None]
    ) -> None:
        """Extend the lease until the handler has ended; an exception stops the handler, because another
        process takes the job when the lease ends."""
        while not handler.done():
            try:
                answer = await self._store.heartbeat(
                    job, self._owner, context.current_progress, LEASE_SECONDS
                )
            except Exception as error:
                if not isinstance(error, FlywheelError) or not error.retryable:
                    handler.cancel()
                    raise
                log.warning("no heartbeat of %s: %s", job.name, error.message)
            else:
                if answer is not False:
                    if answer:
                        context.stop()
                    handler.cancel()
                    return
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _retry_write(self, write: Callable[[], Awaitable[None]]) -> None:
        """Repeat a write while the database is down. If that takes too long, raises its error."""
        for wait in WRITE_RETRY_SECONDS:
            try:
                await write()
            except FlywheelError as error:
                _raise_unless_retryable(error, "the end of a job is stored later")
                await asyncio.sleep(wait)
            else:
                return
        await write()


def _raise_unless_retryable(error: FlywheelError, consequence: str) -> None:
    if not error.retryable:
        raise error
    log.warning("%s: %s", consequence, error.message)


def _known(job: Job | None, project: str, job_id: str) -> Job:
    if job is None:
        raise UnknownJob(f"projects/{project}/jobs/{job_id} does not exist: look it up with ListJobs.")
    return job
