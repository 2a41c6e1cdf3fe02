"""Long-running jobs: a table of what was asked for, and a runner that carries it out.

A handler is registered per kind and gets a JobContext. It must be able to start again: a process may die at any await,
and another one then calls the handler anew with the checkpoint that was saved last.

    runner.register("MATERIALIZE", handler)          # async def handler(job: JobContext) -> Mapping[str, object] | None
    job = await runner.submit("MATERIALIZE", request, request_id, project="default")
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from flywheel_common.errors import FailedPrecondition, FlywheelError, NotFound, Unavailable
from flywheel_common.ids import Ids

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
HEARTBEAT_SECONDS = 0.5
POLL_SECONDS = 1.0
WATCH_SECONDS = 0.1
MAX_ATTEMPTS = 5


class JobState(enum.StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"

    @property
    def ended(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Progress:
    """`total` = 0: not known yet."""

    done: int = 0
    total: int = 0
    unit: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    project: str
    id: str
    kind: str
    request: bytes
    created_at: datetime
    state: JobState = JobState.QUEUED
    progress: Progress = Progress()
    ended_at: datetime | None = None
    error_reason: str = ""
    error_message: str = ""
    training_set: str = ""
    """Resource name of the training set that the job builds, empty for other kinds."""
    result: Mapping[str, object] = field(default_factory=dict)
    """What the handler answered, as JSON values."""
    checkpoint: bytes = b""
    attempt: int = 0
    cancel_requested: bool = False

    @property
    def name(self) -> str:
        return f"projects/{self.project}/jobs/{self.id}"


class JobCancelled(Exception):
    """Raised by `JobContext.check_cancelled` inside a handler; the runner ends the job as CANCELLED."""


class JobStore(Protocol):
    """Jobs in a database. Every method is one transaction; raises Unavailable while the database is away."""

    async def create(self, job: Job, request_id: str, request_hash: bytes) -> Job:
        """Insert, or answer the job made by the same request_id (empty: never the same) of this project and kind.

        Raises InvalidArgument REQUEST_ID_REUSED when that one had another request_hash.
        """
        ...

    async def repeated(self, project: str, kind: str, request_id: str, request_hash: bytes) -> Job | None:
        """The job that `create` would answer because this request_id made it; None when it would make a new one. Raises as `create`."""
        ...

    async def claim(self, owner: str, kinds: Sequence[str], lease_seconds: float) -> Job | None:
        """The oldest due job that nobody holds, now RUNNING and held by `owner`. Two claimers never get the same job.

        A job whose holder's lease ran out counts as held by nobody; after MAX_ATTEMPTS it becomes LOST instead.
        """
        ...

    async def heartbeat(self, job: Job, owner: str, progress: Progress, lease_seconds: float) -> bool | None:
        """Extend the lease and store progress. True: cancellation was asked for. None: `owner` holds it no longer."""
        ...

    async def save_checkpoint(self, job: Job, owner: str, checkpoint: bytes) -> None: ...

    async def forget_request(self, job: Job, owner: str) -> None:
        """Empty the request; its hash stays, so that a repeated request_id is still recognized."""
        ...

    async def finish(self, job: Job, owner: str) -> None:
        """Store state, progress, error and result of an ended job, if `owner` still holds it."""
        ...

    async def requeue(self, job: Job, owner: str, delay_seconds: float) -> None:
        """Give a job back: it may be claimed again after the delay."""
        ...

    async def get(self, project: str, job_id: str) -> Job | None: ...

    async def list(self, project: str, *, kind: str, state: str, before: str, limit: int) -> list[Job]:
        """Newest first; `kind` and `state` empty: all; only ids smaller than `before` unless that is empty."""
        ...

    async def ended_since(self, kind: str, since: datetime) -> Sequence[Job]:
        """Jobs of every project that ended then or later, in whatever state, the first to end first."""
        ...

    async def request_cancel(self, project: str, job_id: str) -> Job | None:
        """A queued job becomes CANCELLED, a running one is marked; None when there is no such job."""
        ...


class JobContext:
    """What a handler sees of its job."""

    def __init__(self, job: Job, owner: str, store: JobStore) -> None:
        self.job = job
        self.checkpoint = job.checkpoint
        """What `save_checkpoint` stored last, also by an earlier process; empty at the first start."""
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
        """Tell how far the job is. Cheap and callable from any thread: stored with the next heartbeat."""
        self._progress = Progress(done, total, unit, message)

    def check_cancelled(self) -> None:
        """Raises JobCancelled when the job should stop. Callable from any thread, for work outside the event loop."""
        if self.cancelled:
            raise JobCancelled

    async def save_checkpoint(self, checkpoint: bytes) -> None:
        """Remember where to resume; it is in the database when this returns."""
        await self._store.save_checkpoint(self.job, self._owner, checkpoint)
        self.checkpoint = checkpoint

    async def forget_request(self) -> None:
        """Leave nothing of what was asked for in the database. A later start of the handler finds an empty request."""
        await self._store.forget_request(self.job, self._owner)

    def stop(self) -> None:
        """Make `check_cancelled` raise from now on."""
        self.cancelled = True


Handler = Callable[[JobContext], Awaitable[Mapping[str, object] | None]]


class JobRunner:
    """Submits, runs and watches jobs. Any number of processes may run one over the same store."""

    def __init__(
        self, store: JobStore, ids: Ids, now: Callable[[], datetime], *, concurrency: int = 2
    ) -> None:
        self._store = store
        self._ids = ids
        self._now = now
        self._owner = ids.new()
        self._handlers: dict[str, Handler] = {}
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(concurrency)

    def register(self, kind: str, handler: Handler) -> None:
        if kind in self._handlers:
            raise ValueError(f"kind {kind} has a handler already")
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
        """Queue a job. The same request_id and request answer the first job; another request is INVALID_ARGUMENT. `check` refuses what
        cannot be carried out by raising; who repeats a request gets the first answer whatever has changed since, so it is not asked then.
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
        """Ask a job to stop. Raises FailedPrecondition JOB_ENDED when it has ended by itself."""
        job = _known(await self._store.request_cancel(project, job_id), project, job_id)
        if job.state in (JobState.SUCCEEDED, JobState.FAILED, JobState.LOST):
            raise FailedPrecondition(
                f"{job.name} has ended as {job.state}: there is nothing to cancel.", reason="JOB_ENDED"
            )
        return job

    async def watch(self, project: str, job_id: str) -> AsyncIterator[Job]:
        """The job now and at every change of state or progress until it has ended."""
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
        """Carry out jobs until cancelled; what runs then is given back for another process to resume."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._slots.acquire()
                job = None
                try:
                    job = await self._next()
                finally:
                    if job is None:
                        self._slots.release()
                if job is not None:
                    group.create_task(self._carry_out(job), name=f"job-{job.id}")

    async def _next(self) -> Job | None:
        self._wake.clear()
        with suppress(Unavailable):
            job = await self._store.claim(self._owner, sorted(self._handlers), LEASE_SECONDS)
            if job is not None:
                return job
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._wake.wait()
        return None

    async def _carry_out(self, job: Job) -> None:
        context = JobContext(job, self._owner, self._store)
        handling = asyncio.ensure_future(self._handlers[job.kind](context))
        beating = asyncio.create_task(self._beat(job, context, handling), name=f"heartbeat-{job.id}")
        try:
            ended = await self._outcome(job, context, handling)
            if ended is not None:
                await self._persistently(lambda: self._store.finish(ended, self._owner))
        except asyncio.CancelledError:
            handling.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await handling
            with suppress(FlywheelError):
                await self._store.requeue(job, self._owner, 0.0)
            raise
        finally:
            beating.cancel()
            self._slots.release()
            self._wake.set()

    async def _outcome(
        self, job: Job, context: JobContext, handling: asyncio.Future[Mapping[str, object] | None]
    ) -> Job | None:
        """The ended job; None when it was given back or taken away."""

        def ended(
            state: JobState, reason: str = "", message: str = "", result: Mapping[str, object] | None = None
        ) -> Job:
            return replace(
                job, state=state, progress=context.current_progress, ended_at=self._now(), error_reason=reason,
                error_message=message, result=result or {},
            )  # fmt: skip

        # asyncio.wait does not raise what the handler raised, and is cancelled only when this task is.
        await asyncio.wait([handling])
        if handling.cancelled():
            return ended(JobState.CANCELLED) if context.cancelled else None
        error = handling.exception()
        if error is None:
            return ended(JobState.SUCCEEDED, result=handling.result())
        if isinstance(error, JobCancelled):
            return ended(JobState.CANCELLED)
        if isinstance(error, FlywheelError):
            if error.retryable and job.attempt < MAX_ATTEMPTS:
                log.warning("job %s gives back: %s", job.name, error.message)
                await self._persistently(lambda: self._store.requeue(job, self._owner, 2.0**job.attempt))
                return None
            return ended(JobState.FAILED, error.reason, error.message)
        error_id = self._ids.new()
        log.error("job %s failed, error id %s", job.name, error_id, exc_info=error)
        return ended(JobState.FAILED, "INTERNAL", f"An internal error ended the job (error id {error_id}).")

    async def _beat(
        self, job: Job, context: JobContext, handling: asyncio.Future[Mapping[str, object] | None]
    ) -> None:
        while not handling.done():
            with suppress(Unavailable):
                answer = await self._store.heartbeat(
                    job, self._owner, context.current_progress, LEASE_SECONDS
                )
                if answer is not False:
                    if answer:
                        context.stop()
                    handling.cancel()
                    return
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _persistently(self, write: Callable[[], Awaitable[None]]) -> None:
        """Repeat a write while the database is away; the lease decides if that takes too long."""
        for wait in (0.2, 0.5, 1.0, 2.0, 4.0):
            try:
                await write()
            except Unavailable:
                await asyncio.sleep(wait)
            else:
                return
        await write()


def _known(job: Job | None, project: str, job_id: str) -> Job:
    if job is None:
        raise NotFound(
            f"projects/{project}/jobs/{job_id} does not exist: look it up with ListJobs.",
            reason="UNKNOWN_JOB",
        )
    return job
