"""`JobStore` in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_job.outcome import Outcome
from flywheel_trainer.fakes.text_terms import has_text
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.errors import JobEnded, UnknownJob
from flywheel_trainer.jobs.job import ENDED, Job, JobName, JobState
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.run import Run, RunName, RunState


class MemoryJobs:
    """`JobStore` over a `MemoryTracking`."""

    def __init__(self, tracking: MemoryTracking) -> None:
        self._tracking = tracking
        self._requests = tracking.requests

    def _change(self, name: JobName, states: Sequence[JobState], **changes: Any) -> Job | None:
        job, details = self._tracking.jobs.get(name, (None, {}))
        if job is None or job.state not in states:
            return None
        self._tracking.jobs[name] = replace(job, **changes), details
        return self._tracking.jobs[name][0]

    async def create(
        self, job: Job, details: Mapping[str, Any], request_id: str, body: bytes, now: datetime
    ) -> Job:
        known = await self.find_by_request(request_id, body)
        if known is not None:
            return known
        run = Run(job.run, job.spec.experiment, training_set=job.spec.training_set, job=str(job.name))
        self._tracking.add_run(run, now)
        self._tracking.jobs[job.name] = replace(job, state=JobState.QUEUED, created_at=now), dict(details)
        self._requests.store("SubmitJob", request_id, body, job.name)
        return self._tracking.jobs[job.name][0]

    async def find_by_request(self, request_id: str, body: bytes) -> Job | None:
        first = self._requests.replay("SubmitJob", request_id, body)
        return None if first is None else self._tracking.jobs[first][0]

    async def get(self, name: JobName) -> Job | None:
        found = self._tracking.jobs.get(name)
        return found[0] if found else None

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[Job]:
        query = repr((project, terms))
        (after,) = decode_token(token, query=query) or [""]
        found = [j for j, _ in self._tracking.jobs.values() if j.name.project == project]
        found = [j for j in found if all(has_text(t, _field(j, t.field)) for t in terms)]
        found = [j for j in found if not after or j.name.job < str(after)]
        rows = sorted(found, key=lambda j: j.name.job, reverse=True)
        return cut(rows[: size + 1], size, lambda j: (j.name.job,), query=query)

    async def request_cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job:
        if self._requests.replay("CancelJob", request_id, body) is not None:
            return self._tracking.jobs[name][0]
        job = await self.get(name)
        if job is None:
            raise UnknownJob.of(name)
        if job.state in ENDED:
            raise JobEnded.of(name, job.state)
        self._tracking.jobs[name] = replace(job, cancel_requested=True), self._tracking.jobs[name][1]
        self._requests.store("CancelJob", request_id, body, name)
        return self._tracking.jobs[name][0]

    async def active(self) -> Sequence[tuple[Job, Mapping[str, Any]]]:
        found = [(j, d) for j, d in self._tracking.jobs.values() if j.state not in ENDED]
        return sorted(found, key=lambda jd: (-jd[0].priority, jd[0].created_at))

    async def mark_started(self, name: JobName, now: datetime) -> None:
        self._change(name, [JobState.QUEUED], state=JobState.RUNNING, started_at=now)

    async def set_waiting(self, name: JobName, message: str) -> None:
        job = await self.get(name)
        if job is not None:
            progress = {**job.progress, "message": message}
            self._change(name, [JobState.QUEUED, JobState.RUNNING], progress=progress)

    async def heartbeat(self, name: JobName, progress: Mapping[str, Any], now: datetime) -> None:
        self._change(name, [JobState.RUNNING], progress=dict(progress))
        job = await self.get(name)
        record = self._tracking.runs.get(job.run) if job else None
        if record is not None and record.run.state is RunState.RUNNING:
            record.heartbeat = now

    async def end(self, name: JobName, state: JobState, outcome: Outcome, now: datetime) -> bool:
        ended = self._change(
            name,
            [JobState.QUEUED, JobState.RUNNING],
            state=state,
            error_reason=outcome.error_reason,
            error_message=outcome.error_message,
            ended_at=now,
        )
        if ended is None:
            return False
        record = self._tracking.runs[ended.run]
        record.add(outcome.points)
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
        return True

    async def epochs_done(self, run: RunName) -> int:
        record = self._tracking.runs.get(run)
        steps = [step for key, step in record.points if key == "train_loss"] if record else []
        return max(steps, default=0)


def _field(job: Job, field: str) -> str:
    return str(job.state) if field == "state" else str(getattr(job.spec, field))
