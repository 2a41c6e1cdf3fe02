"""`Supervision` in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_common.granted.access import Access
from flywheel_common.postgres.errors import LeaseLost
from flywheel_job.outcome import Outcome
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.attempt import Attempt, Watch, engine_id
from flywheel_trainer.jobs.job import ENDED, JobName, JobState
from flywheel_trainer.jobs.ports import OF_TRIALS, ActiveJob
from flywheel_trainer.runs.run import RunName, RunState


class MemorySupervision:
    """`Supervision` over a `MemoryTracking`; a newer object takes the lease of the older ones."""

    def __init__(self, tracking: MemoryTracking, token: int) -> None:
        self._tracking, self._token = tracking, token
        tracking.supervisor_token = max(tracking.supervisor_token, token)

    def _fence(self) -> None:
        if self._token != self._tracking.supervisor_token:
            raise LeaseLost("The lease is held by another process.")

    def _active(self, name: JobName) -> ActiveJob | None:
        found = self._tracking.jobs.get(name)
        return None if found is None or found.job.state in ENDED else found

    async def active(self) -> Sequence[ActiveJob]:
        found = [a for a in self._tracking.jobs.values() if a.job.state not in ENDED]
        return sorted(found, key=lambda a: (-a.job.priority, a.job.created_at))

    async def begin_attempt(self, name: JobName, now: datetime) -> Attempt | None:
        self._fence()
        active = self._active(name)
        if active is None or active.attempt is not None:
            return active.attempt if active else None
        number = len(active.job.attempts) + 1
        attempt = Attempt(number, engine_id(name.job, number), now)
        job = replace(active.job, attempts=(*active.job.attempts, attempt))
        self._tracking.jobs[name] = ActiveJob(job, active.details, attempt)
        return attempt

    async def grant(self, name: JobName, number: int, access: Access) -> None:
        self._fence()
        active = self._active(name)
        if active is not None and active.attempt is not None and active.attempt.number == number:
            self._tracking.access[active.attempt.engine_id] = access

    async def mark_running(self, name: JobName, number: int, now: datetime) -> None:
        self._fence()
        active = self._active(name)
        if active is None or active.attempt is None or active.attempt.number != number:
            return
        attempt = replace(active.attempt, started_at=active.attempt.started_at or now)
        self._set_attempt(name, attempt)
        watch = replace(active.watch, checked_at=active.watch.checked_at or now)
        self._tracking.jobs[name] = replace(self._tracking.jobs[name], watch=watch)
        if active.job.state is JobState.QUEUED:
            progress = {key: value for key, value in active.job.progress.items() if key != "message"}
            started = active.job.started_at or now
            self._tracking.change(name, state=JobState.RUNNING, started_at=started, progress=progress)

    async def observe(self, name: JobName, number: int, watch: Watch, progress: Mapping[str, Any]) -> None:
        self._fence()
        active = self._active(name)
        if active is None or active.attempt is None or active.attempt.number != number:
            return
        self._tracking.jobs[name] = replace(active, watch=watch)
        if active.job.state is JobState.RUNNING:
            self._tracking.change(name, progress=dict(progress))

    async def set_waiting(self, name: JobName, message: str) -> None:
        self._fence()
        active = self._active(name)
        if active is not None:
            self._tracking.change(name, progress={**active.job.progress, "message": message})

    async def end_attempt(self, name: JobName, number: int, reason: str, message: str, now: datetime) -> None:
        self._fence()
        active = self._active(name)
        if active is None or active.attempt is None or active.attempt.number != number:
            return
        self._set_attempt(
            name, replace(active.attempt, ended_at=now, error_reason=reason, error_message=message)
        )
        progress = {**active.job.progress, "message": f"attempt {number} was lost: {reason}"}
        self._tracking.change(name, state=JobState.QUEUED, progress=progress)

    async def end(self, name: JobName, state: JobState, outcome: Outcome, now: datetime) -> bool:
        self._fence()
        active = self._active(name)
        if active is None:
            return False
        reason, message = outcome.error_reason, outcome.error_message
        if active.attempt is not None:
            self._set_attempt(
                name, replace(active.attempt, ended_at=now, error_reason=reason, error_message=message)
            )
        self._tracking.change(name, state=state, error_reason=reason, error_message=message, ended_at=now)
        record = self._tracking.runs[active.job.run]
        number = active.attempt.number if active.attempt else 0
        record.add(outcome.points, number)
        record.drop_replaced(number)
        if record.run.state in (RunState.RUNNING, RunState.LOST):
            record.run = replace(
                record.run,
                params={**record.run.params, **outcome.params},
                artifacts=outcome.artifacts,
                code_version=outcome.code_version,
                environment=outcome.environment,
                state=RunState(state),
                error_message=outcome.error_message,
                ended_at=record.run.ended_at or now,
            )
        self._tracking.end_trials(name, now)
        return True

    async def last_steps(self, run: RunName) -> Mapping[str, int]:
        record = self._tracking.runs.get(run)
        steps = record.progress_steps() if record else {}
        below = [
            step + 1
            for one in self._tracking.runs.values()
            if one.run.parent_run == str(run) and one.run.state is RunState.RUNNING
            for step in one.progress_steps().values()
        ]
        return steps | ({OF_TRIALS: sum(below)} if below else {})

    def _set_attempt(self, name: JobName, attempt: Attempt) -> None:
        active = self._tracking.jobs[name]
        job = replace(active.job, attempts=(*active.job.attempts[:-1], attempt))
        ended = attempt.ended_at is not None
        self._tracking.jobs[name] = ActiveJob(
            job, active.details, None if ended else attempt, Watch() if ended else active.watch
        )
