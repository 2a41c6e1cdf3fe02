"""`JobStore` in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_common.errors import FailedPrecondition
from flywheel_common.paging import Page, cut, decode_token
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.errors import unknown_job
from flywheel_trainer.jobs.job import ENDED, Job, JobName, JobState
from flywheel_trainer.recipes.outcome import Outcome
from flywheel_trainer.runs.run import Run, RunName, RunState


class MemoryJobs:
    """`jobs.JobStore`."""

    def __init__(self, tracking: MemoryTracking) -> None:
        self._held = tracking

    def _change(self, name: JobName, states: Sequence[JobState], **changes: Any) -> Job | None:
        job, details = self._held.jobs.get(name, (None, {}))
        if job is None or job.state not in states:
            return None
        self._held.jobs[name] = replace(job, **changes), details
        return self._held.jobs[name][0]

    async def create(
        self, job: Job, details: Mapping[str, Any], request_id: str, body: bytes, now: datetime
    ) -> Job:
        known = await self.by_request(request_id, body)
        if known is not None:
            return known
        run = Run(job.run, job.spec.experiment, training_set=job.spec.training_set, job=str(job.name))
        self._held.add_run(run, now)
        self._held.jobs[job.name] = replace(job, state=JobState.QUEUED, created_at=now), dict(details)
        self._held.answered("SubmitJob", request_id, body, job.name)
        return self._held.jobs[job.name][0]

    async def by_request(self, request_id: str, body: bytes) -> Job | None:
        first = self._held.replay("SubmitJob", request_id, body)
        return None if first is None else self._held.jobs[first][0]

    async def get(self, name: JobName) -> Job | None:
        found = self._held.jobs.get(name)
        return found[0] if found else None

    async def list(self, project: str, size: int, token: str) -> Page[Job]:
        (after,) = decode_token(token, query=project) or [""]
        mine = [j for j, _ in self._held.jobs.values() if j.name.project == project]
        rows = sorted(
            (j for j in mine if not after or j.name.job < str(after)), key=lambda j: j.name.job, reverse=True
        )
        return cut(rows[: size + 1], size, lambda j: (j.name.job,), query=project)

    async def request_cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job:
        if self._held.replay("CancelJob", request_id, body) is not None:
            return self._held.jobs[name][0]
        job = await self.get(name)
        if job is None:
            raise unknown_job(name)
        if job.state in ENDED:
            raise FailedPrecondition(f"Job {str(name)!r} has ended as {job.state}.", reason="JOB_ENDED")
        self._held.jobs[name] = replace(job, cancel_requested=True), self._held.jobs[name][1]
        self._held.answered("CancelJob", request_id, body, name)
        return self._held.jobs[name][0]

    async def active(self) -> Sequence[tuple[Job, Mapping[str, Any]]]:
        alive = [(j, d) for j, d in self._held.jobs.values() if j.state not in ENDED]
        return sorted(alive, key=lambda jd: (-jd[0].priority, jd[0].created_at))

    async def started(self, name: JobName, now: datetime) -> None:
        self._change(name, [JobState.QUEUED], state=JobState.RUNNING, started_at=now)

    async def waits(self, name: JobName, message: str) -> None:
        job = await self.get(name)
        if job is not None:
            progress = {**job.progress, "message": message}
            self._change(name, [JobState.QUEUED, JobState.RUNNING], progress=progress)

    async def alive(self, name: JobName, progress: Mapping[str, Any], now: datetime) -> None:
        self._change(name, [JobState.RUNNING], progress=dict(progress))
        job = await self.get(name)
        held = self._held.runs.get(job.run) if job else None
        if held is not None and held.run.state is RunState.RUNNING:
            held.heartbeat = now

    async def end(self, name: JobName, state: JobState, outcome: Outcome, now: datetime) -> bool:
        ended = self._change(
            name, [JobState.QUEUED, JobState.RUNNING], state=state, error_reason=outcome.error_reason,
            error_message=outcome.error_message, ended_at=now,
        )  # fmt: skip
        if ended is None:
            return False
        held = self._held.runs[ended.run]
        held.add(outcome.points)
        if held.run.state in (RunState.RUNNING, RunState.LOST):
            held.run = replace(
                held.run, params={**held.run.params, **outcome.params}, artifacts=outcome.artifacts,
                code_version=outcome.code_version, environment=outcome.environment, state=RunState(state),
                error_message=outcome.error_message, ended_at=held.run.ended_at or now,
            )  # fmt: skip
        return True

    async def progress(self, run: RunName) -> int:
        held = self._held.runs.get(run)
        return max((step for key, step in held.points if key == "train_loss"), default=0) if held else 0
