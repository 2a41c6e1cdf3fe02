"""`JobStore` in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_trainer.fakes.text_terms import has_text
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.errors import CancelledOnRequest, JobEnded, UnknownJob
from flywheel_trainer.jobs.job import ENDED, Job, JobName, JobState
from flywheel_trainer.jobs.ports import ActiveJob
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.run import Run


class MemoryJobs:
    """`JobStore` over a `MemoryTracking`."""

    def __init__(self, tracking: MemoryTracking) -> None:
        self._tracking = tracking
        self._requests = tracking.requests

    async def create(
        self, job: Job, details: Mapping[str, Any], request_id: str, body: bytes, now: datetime
    ) -> Job:
        known = await self.find_by_request(request_id, body)
        if known is not None:
            return known
        if job.pipeline_run and job.pipeline_run in self._tracking.closed_pipeline_runs:
            raise CancelledOnRequest(f"{job.pipeline_run} was cancelled or has ended.")
        run = Run(job.run, job.spec.experiment, training_set=job.spec.training_set, job=str(job.name))
        self._tracking.add_run(run, now)
        queued = replace(job, state=JobState.QUEUED, created_at=now)
        self._tracking.jobs[job.name] = ActiveJob(queued, dict(details))
        self._requests.store("SubmitJob", request_id, body, job.name)
        return queued

    async def find_by_request(self, request_id: str, body: bytes) -> Job | None:
        first = self._requests.replay("SubmitJob", request_id, body)
        return None if first is None else self._tracking.jobs[first].job

    async def get(self, name: JobName) -> Job | None:
        found = self._tracking.jobs.get(name)
        return found.job if found else None

    async def list(self, project: str, terms: Sequence[Term], size: int, token: str) -> Page[Job]:
        query = repr((project, terms))
        (after,) = decode_token(token, query=query) or [""]
        found = [a.job for a in self._tracking.jobs.values() if a.job.name.project == project]
        found = [j for j in found if all(has_text(t, _field(j, t.field)) for t in terms)]
        found = [j for j in found if not after or j.name.job < str(after)]
        rows = sorted(found, key=lambda j: j.name.job, reverse=True)
        return cut(rows[: size + 1], size, lambda j: (j.name.job,), query=query)

    async def request_cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job:
        if self._requests.replay("CancelJob", request_id, body) is not None:
            return self._tracking.jobs[name].job
        job = await self.get(name)
        if job is None:
            raise UnknownJob.of(name)
        if job.state in ENDED:
            raise JobEnded.of(name, job.state)
        self._tracking.change(name, cancel_requested=True)
        self._requests.store("CancelJob", request_id, body, name)
        return self._tracking.jobs[name].job


def _field(job: Job, field: str) -> str:
    return str(job.state) if field == "state" else str(getattr(job.spec, field))
