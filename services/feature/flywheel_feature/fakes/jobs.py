"""Jobs in memory, for unit tests (port: jobs.runner.JobStore). The contract tests run over it too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic

from flywheel_common.postgres.errors import RequestIdReused
from flywheel_feature.jobs.errors import JobLost
from flywheel_feature.jobs.model import Job, JobState, Progress
from flywheel_feature.jobs.ports import MAX_ATTEMPTS


@dataclass
class _Row:
    job: Job
    request_hash: bytes
    due: float
    owner: str = ""
    lease_until: float = 0.0


class MemoryJobs:
    """`now` is a monotonic clock, which measures leases and delays."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._rows: dict[tuple[str, str], _Row] = {}
        self._requests: dict[tuple[str, str, str], tuple[str, str]] = {}

    async def create(self, job: Job, request_id: str, request_hash: bytes) -> Job:
        before = await self.repeated(job.project, job.kind, request_id, request_hash)
        if before is not None:
            return before
        self._requests[job.project, job.kind, request_id] = job.project, job.id
        self._rows[job.project, job.id] = _Row(job, request_hash, self._now())
        return job

    async def repeated(self, project: str, kind: str, request_id: str, request_hash: bytes) -> Job | None:
        key = project, kind, request_id
        if not request_id or key not in self._requests:
            return None
        first = self._rows[self._requests[key]]
        if first.request_hash != request_hash:
            raise RequestIdReused(
                f"request_id {request_id!r} was used for another {kind} request: use a new id.",
                request_id=request_id,
            )
        return first.job

    async def claim(self, owner: str, kinds: Sequence[str], lease_seconds: float) -> Job | None:
        now = self._now()
        free: list[_Row] = []
        for row in self._rows.values():
            expired = row.job.state is JobState.RUNNING and row.lease_until < now
            if expired and row.job.attempt >= MAX_ATTEMPTS:
                row.job = replace(
                    row.job,
                    state=JobState.LOST,
                    ended_at=datetime.now(UTC),
                    error_reason=JobLost.reason,
                    error_message="Every process that ran the job died: read their logs and submit it again.",
                )
            elif row.job.kind in kinds and row.due <= now and (expired or row.job.state is JobState.QUEUED):
                free.append(row)
        if not free:
            return None
        row = min(free, key=lambda r: r.job.created_at)
        row.owner, row.lease_until = owner, now + lease_seconds
        row.job = replace(row.job, state=JobState.RUNNING, attempt=row.job.attempt + 1)
        return row.job

    def _owned(self, job: Job, owner: str) -> _Row | None:
        """The row of a job that `owner` is running."""
        row = self._rows.get((job.project, job.id))
        return row if row and row.job.state is JobState.RUNNING and row.owner == owner else None

    async def heartbeat(self, job: Job, owner: str, progress: Progress, lease_seconds: float) -> bool | None:
        row = self._owned(job, owner)
        if row is None:
            return None
        row.lease_until = self._now() + lease_seconds
        row.job = replace(row.job, progress=progress)
        return row.job.cancel_requested

    async def save_checkpoint(self, job: Job, owner: str, checkpoint: bytes) -> None:
        row = self._owned(job, owner)
        if row is not None:
            row.job = replace(row.job, checkpoint=checkpoint)

    async def finish(self, job: Job, owner: str) -> None:
        row = self._owned(job, owner)
        if row is not None:
            row.job = replace(
                row.job,
                state=job.state,
                progress=job.progress,
                ended_at=job.ended_at,
                error_reason=job.error_reason,
                error_message=job.error_message,
                result=job.result,
            )

    async def requeue(self, job: Job, owner: str, delay_seconds: float) -> None:
        row = self._owned(job, owner)
        if row is not None:
            row.due = self._now() + delay_seconds
            row.job = replace(row.job, state=JobState.QUEUED)

    async def get(self, project: str, job_id: str) -> Job | None:
        row = self._rows.get((project, job_id))
        return row.job if row else None

    async def list(self, project: str, *, kind: str, state: str, before: str, limit: int) -> list[Job]:
        found = [
            row.job
            for (job_project, job_id), row in self._rows.items()
            if job_project == project
            and kind in ("", row.job.kind)
            and state in ("", row.job.state)
            and (not before or job_id < before)
        ]
        return sorted(found, key=lambda j: j.id, reverse=True)[:limit]

    async def ended_since(self, kind: str, since: datetime) -> Sequence[Job]:
        ended = [
            (r.job.ended_at, r.job.id, r.job)
            for r in self._rows.values()
            if r.job.kind == kind and r.job.ended_at
        ]
        return [job for at, _, job in sorted(ended, key=lambda e: e[:2]) if at >= since]

    async def request_cancel(self, project: str, job_id: str) -> Job | None:
        row = self._rows.get((project, job_id))
        if row is None:
            return None
        if row.job.state is JobState.QUEUED:
            row.job = replace(row.job, state=JobState.CANCELLED, ended_at=datetime.now(UTC))
        if not row.job.state.ended or row.job.state is JobState.CANCELLED:
            row.job = replace(row.job, cancel_requested=True)
        return row.job
