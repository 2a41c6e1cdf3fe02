"""Moves jobs from QUEUED to their end: starts attempts on the engine, watches them, and reads their outcomes.

One replica supervises at a time: all writes are under the fencing token of its lease. An attempt is recorded
before the engine hears of it, and the engine knows it by an id of its own, so rows and the engine's jobs can
be compared in both directions (`_advance` from the rows, `_stop_orphans` from the engine) after any crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from flywheel_common.clock import Clock
from flywheel_common.deadline import budget
from flywheel_common.errors import FlywheelError, NotFound
from flywheel_common.granted.access import Access
from flywheel_common.postgres.errors import LeaseLost
from flywheel_common.ray.errors import EngineRefused, EngineUnavailable
from flywheel_common.storage.objects import ObjectStore
from flywheel_common.telemetry.logs import get_logger
from flywheel_job.artifacts import ARTIFACTS
from flywheel_job.job_logs.chunks import DRIVER
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.attempt import Attempt, exceeded_limit, retry_at, watched
from flywheel_trainer.jobs.ending import Ending, Evidence, ending_of, last_lines, storable
from flywheel_trainer.jobs.engine import ENDED_ON_ENGINE, Engine, EngineJob, EngineState
from flywheel_trainer.jobs.errors import CancelledOnRequest, InfeasibleResources, JobLost, NotSupervisable
from flywheel_trainer.jobs.files import (
    attempt_folder,
    attempt_key,
    checkpoint_prefix,
    log_folder,
    log_prefix,
)
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.jobs.kinds import Kinds, Launch, PreparedKind
from flywheel_trainer.jobs.logs import StoredLogs
from flywheel_trainer.jobs.ports import ActiveJob, Supervision
from flywheel_trainer.jobs.resources import Node, Quota
from flywheel_trainer.jobs.scheduling import Queued, plan

log = get_logger(__name__)

CALL_SECONDS = 10.0
"""Budget of a step of a running job, so that a hanging dependency does not delay the other jobs for long."""
CONCLUDE_SECONDS = 60.0
"""Budget of the end of a job, which may read a large outcome."""
AT_ONCE = 8
"""Jobs that are advanced at the same time."""
RECONCILE_SECONDS = 5.0
"""Interval of the comparison of the engine's jobs with the rows."""
KEEP_ON_ENGINE = timedelta(hours=1)
"""How long the engine keeps its record of an ended attempt, for people who look there."""
MAX_FAILURES = 5
"""Unexpected errors in a row after which a job is given up."""
START_SECONDS = 600.0
"""How long an engine that answers may refuse to accept an attempt, before the attempt counts as lost."""
INFEASIBLE_SECONDS = 300.0
"""How long a job waits for machines that the cluster does not have, before it fails: a machine may come
back."""
LAUNCHER = "flywheel_job.launcher"


@dataclass(frozen=True)
class Rules:
    """How attempts are started, and how many."""

    bucket: str
    python: str
    """Interpreter on the machines of the cluster."""
    environment_of: Callable[[str], Mapping[str, str]]
    """The environment of an attempt, by its engine id: its token, and how it reaches this service."""
    max_running: int
    quota_of: Callable[[str], Quota] = lambda _: Quota()
    """The quota of a project."""


@dataclass
class _Memory:
    """What one supervisor remembers between two ticks; a new one may start without it."""

    failures: dict[JobName, int] = field(default_factory=dict)
    infeasible_since: dict[JobName, float] = field(default_factory=dict)
    next_reconciliation: float = float("-inf")


def access_of_attempt(bucket: str, name: JobName, number: int, launch: Launch) -> Access:
    """What an attempt may use: the inputs of its launch, and the job's own files in this bucket."""
    own = (attempt_folder(name, number), log_folder(name), checkpoint_prefix(name))
    writes = (*(f"s3://{bucket}/{folder}" for folder in own), *launch.writes)
    return Access(launch.reads, writes, f"s3://{bucket}/{ARTIFACTS}")


class Supervisor:
    """Moves every active job one step at each `tick`."""

    def __init__(
        self,
        store: Supervision,
        engine: Engine,
        objects: ObjectStore,
        kinds: Kinds,
        rules: Rules,
        clock: Clock,
    ) -> None:
        self._store, self._engine, self._objects = store, engine, objects
        self._kinds, self._rules, self._clock = kinds, rules, clock
        self._logs = StoredLogs(objects)
        self._memory = _Memory()

    async def run(self, poll_seconds: float, queued: asyncio.Event) -> None:
        """Tick until the lease is lost, and at once when `queued` is set.

        The outage of a dependency delays jobs and ends none.
        """
        while True:
            queued.clear()
            try:
                await self.tick()
            except LeaseLost:
                raise
            except FlywheelError as error:
                log.warning("jobs not supervised", reason=error.reason, error=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(poll_seconds):
                    await queued.wait()

    async def tick(self) -> None:
        """Advance every active attempt, then start the next ones. Raises LeaseLost."""
        if self._clock.monotonic() >= self._memory.next_reconciliation:
            await self._stop_orphans()
            self._memory.next_reconciliation = self._clock.monotonic() + RECONCILE_SECONDS
        gate = asyncio.Semaphore(AT_ONCE)

        async def advance(active: ActiveJob) -> None:
            async with gate:
                await self._guarded(active)

        jobs = await self._store.active()
        steps = [advance(a) for a in jobs if a.attempt is not None or a.job.cancel_requested]
        results = await asyncio.gather(*steps, return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error
        await self._start_next()

    async def _guarded(self, active: ActiveJob) -> None:
        """Advance one job; an error of this job does not stop the supervision of the others."""
        name = active.job.name
        try:
            with budget(CONCLUDE_SECONDS):
                await self._advance(active)
        except LeaseLost:
            raise
        except FlywheelError as error:
            log.warning("job waits", job=str(name), reason=error.reason, error=error.message)
            await self._store.set_waiting(name, f"waits: {_plain(error.message)}")
        except Exception as error:
            failures = self._memory.failures.get(name, 0) + 1
            self._memory.failures[name] = failures
            log.error("job not advanced", job=str(name), failures_in_a_row=failures, exc_info=error)
            if failures >= MAX_FAILURES:
                message = f"The supervisor failed on this job: {type(error).__name__}."
                await self._end(active.job, JobState.FAILED, Outcome.failed(NotSupervisable(message)))
            return
        self._memory.failures.pop(name, None)

    async def _advance(self, active: ActiveJob) -> None:
        job, attempt = active.job, active.attempt
        if attempt is None:
            await self._end(job, JobState.CANCELLED, _cancelled())
            return
        with budget(CALL_SECONDS):
            known = await self._engine.state(attempt.engine_id)
            if known.state is EngineState.UNKNOWN and attempt.started_at is None:
                if job.cancel_requested:  # if the engine accepts it later, it is an orphan
                    await self._end(job, JobState.CANCELLED, _cancelled())
                else:
                    await self._launch(active, attempt)
                return
            if known.state not in ENDED_ON_ENGINE:
                await self._observe(active, attempt, known)
                return
        await self._conclude(active, attempt, known)

    async def _launch(self, active: ActiveJob, attempt: Attempt) -> None:
        """Start an attempt on the engine; repeated until the engine has accepted it."""
        job, kind = active.job, self._kinds[active.job.kind]
        details = active.details
        if isinstance(kind, PreparedKind):
            prepared = await kind.prepare(job, active.details)
            if prepared.error is not None:
                await self._end(job, JobState.FAILED, storable(Outcome.failed(prepared.error)))
                return
            if prepared.details is None:
                await self._store.set_waiting(job.name, _plain(prepared.message))
                return
            details = prepared.details
        launch = kind.launch(job, details, attempt.number)
        for file, data in launch.files.items():
            await self._objects.put(attempt_key(job.name, attempt.number, file), data)
        logs = f"s3://{self._rules.bucket}/{log_prefix(job.name, DRIVER)}"
        wrapper = (self._rules.python, "-m", LAUNCHER, logs, str(attempt.number), "--")
        command = f"exec {shlex.join((*wrapper, *launch.command))}"
        access = access_of_attempt(self._rules.bucket, job.name, attempt.number, launch)
        await self._store.grant(job.name, attempt.number, access)
        try:
            environment = {**self._rules.environment_of(attempt.engine_id), **launch.environment}
            await self._engine.submit(attempt.engine_id, command, environment)
        except EngineRefused as error:
            await self._end(job, JobState.FAILED, Outcome.failed(error))
            return
        except EngineUnavailable as error:
            await self._not_accepted(active, attempt, error)
            return
        await self._store.mark_running(job.name, attempt.number, self._clock.now())
        log.info("attempt started", job=str(job.name), attempt=attempt.number)

    async def _not_accepted(self, active: ActiveJob, attempt: Attempt, error: EngineUnavailable) -> None:
        """The engine answers, but does not accept this attempt: try again for a while, then give it up."""
        job = active.job
        log.warning("attempt not accepted", job=str(job.name), attempt=attempt.number, error=error.message)
        watch = watched(active.watch, active.watch.mark, self._clock.now())
        if watch.idle_seconds <= START_SECONDS:
            await self._store.observe(job.name, attempt.number, watch, job.progress)
            await self._store.set_waiting(job.name, f"waits: {_plain(error.message)}")
            return
        lost = JobLost(f"The engine did not accept the job for {START_SECONDS:g} s: {error.message}")
        await self._finish(
            job, attempt, Ending(JobState.LOST, storable(Outcome.failed(lost)), may_retry=True)
        )

    async def _observe(self, active: ActiveJob, attempt: Attempt, known: EngineJob) -> None:
        """Record that the attempt runs; stop it if it is cancelled or exceeds a limit."""
        job, now = active.job, self._clock.now()
        if attempt.started_at is None:  # a submission that timed out was accepted
            await self._store.mark_running(job.name, attempt.number, now)
            attempt = Attempt(attempt.number, attempt.engine_id, attempt.created_at, now)
        if job.cancel_requested or active.watch.stopping_reason:
            await self._engine.stop(attempt.engine_id)
            return
        kind = self._kinds[job.kind]
        steps = await self._store.last_steps(job.run)
        watch = watched(active.watch, await self._mark(job, steps), now)
        reason = exceeded_limit(attempt, watch, kind.limits(job.spec), now)
        if reason:
            watch = type(watch)(watch.mark, watch.idle_seconds, watch.checked_at, reason)
        progress = dict(kind.progress(job, steps))
        if known.state is EngineState.UNRECOGNIZED:
            progress["message"] = _plain(f"the engine reports an unknown state: {known.message}"[:200])
        await self._store.observe(job.name, attempt.number, watch, progress)
        if reason:
            log.warning("attempt stopped", job=str(job.name), attempt=attempt.number, reason=reason)
            await self._engine.stop(attempt.engine_id)

    async def _mark(self, job: Job, steps: Mapping[str, int]) -> int:
        """A number that changes with each step.

        While no metric has arrived, the length of the log counts: the cluster may not reach this service.
        """
        if steps:
            return sum(step + 1 for step in steps.values())
        end, _ = await self._logs.end_of(job.name)
        return end

    async def _conclude(self, active: ActiveJob, attempt: Attempt, known: EngineJob) -> None:
        job, kind = active.job, self._kinds[active.job.kind]

        async def read(file: str) -> bytes | None:
            try:
                return await self._objects.get(attempt_key(job.name, attempt.number, file))
            except NotFound:
                return None

        success, failure = await kind.conclude(read)
        tail = b"" if success else await self._logs.tail_of_attempt(job.name, attempt, self._engine)
        evidence = Evidence(
            known,
            success,
            failure,
            cancel_requested=job.cancel_requested,
            stopping_reason=active.watch.stopping_reason,
            log_tail=last_lines(tail),
        )
        await self._finish(job, attempt, ending_of(evidence))

    async def _finish(self, job: Job, attempt: Attempt, ending: Ending) -> None:
        """End the job, or only the attempt if another one may follow."""
        reason, message = ending.outcome.error_reason, ending.outcome.error_message
        if ending.may_retry and attempt.number < self._kinds[job.kind].limits(job.spec).max_attempts:
            await self._store.end_attempt(job.name, attempt.number, reason, message, self._clock.now())
            log.warning("attempt lost", job=str(job.name), attempt=attempt.number, reason=reason)
        else:
            await self._end(job, ending.state, ending.outcome)

    async def _end(self, job: Job, state: JobState, outcome: Outcome) -> None:
        if await self._store.end(job.name, state, outcome, self._clock.now()):
            log.info("job ended", job=str(job.name), state=str(state), reason=outcome.error_reason)

    async def _start_next(self) -> None:
        """Start the attempts that the plan names, and tell the other queued jobs why they wait."""
        jobs = await self._store.active()
        queued = [a for a in jobs if a.attempt is None and not a.job.cancel_requested]
        if not queued:
            self._memory.infeasible_since.clear()
            return
        by_name = {active.job.name: active for active in queued}
        decided = plan(
            [self._queued(active) for active in queued],
            [(a.job.name.project, self._kinds[a.job.kind].request(a.job.spec)) for a in jobs if a.attempt],
            await self._nodes(),
            self._rules.quota_of,
            self._rules.max_running,
            self._clock.now(),
        )
        for name in decided.start:
            attempt = await self._store.begin_attempt(name, self._clock.now())
            if attempt is not None:
                active = by_name[name]
                await self._guarded(ActiveJob(active.job, active.details, attempt))
        for name, reason in (*decided.waiting.items(), *decided.infeasible.items()):
            if by_name[name].job.progress.get("message") != reason:
                await self._store.set_waiting(name, reason)
        await self._fail_infeasible(decided.infeasible, by_name)

    def _queued(self, active: ActiveJob) -> Queued[JobName]:
        job = active.job
        ended = job.attempts[-1].ended_at if job.attempts else None
        return Queued(
            job.name,
            job.name.project,
            job.priority,
            job.created_at or self._clock.now(),
            self._kinds[job.kind].request(job.spec),
            retry_at(len(job.attempts), ended) if ended else None,
        )

    async def _nodes(self) -> list[Node]:
        try:
            with budget(CALL_SECONDS):
                return list(await self._engine.nodes())
        except EngineUnavailable:
            return []

    async def _fail_infeasible(
        self, infeasible: Mapping[JobName, str], jobs: Mapping[JobName, ActiveJob]
    ) -> None:
        since, now = self._memory.infeasible_since, self._clock.monotonic()
        for name in [name for name in since if name not in infeasible]:
            del since[name]
        for name, lack in infeasible.items():
            if now - since.setdefault(name, now) >= INFEASIBLE_SECONDS:
                await self._end(jobs[name].job, JobState.FAILED, Outcome.failed(InfeasibleResources(lack)))

    async def _stop_orphans(self) -> None:
        """Stop jobs of this installation on the engine that are no active attempt, and forget old ended ones.

        The engine is read first: an attempt that begins meanwhile is not in its list.
        """
        try:
            with budget(CALL_SECONDS):
                listed = await self._engine.jobs()
            current = {a.attempt.engine_id for a in await self._store.active() if a.attempt}
            for job in listed:
                if job.job_id in current:
                    continue
                with budget(CALL_SECONDS):
                    if job.state not in ENDED_ON_ENGINE:
                        log.warning("orphan stopped", engine_id=job.job_id)
                        await self._engine.stop(job.job_id)
                    elif job.ended_at is not None and self._clock.now() - job.ended_at > KEEP_ON_ENGINE:
                        await self._engine.forget(job.job_id)
        except EngineUnavailable as error:
            log.warning("orphans not looked for", error=error.message)


def _cancelled() -> Outcome:
    return Outcome.failed(CancelledOnRequest("Cancelled on request."))


def _plain(text: str) -> str:
    """Text that a database can store."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
