"""`jobs.JobStore` in memory, for unit tests of what runs as jobs. Held to the same contract suite as PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic

from flywheel_common.errors import InvalidArgument
from flywheel_feature.jobs.model import Job, JobState, Progress
from flywheel_feature.jobs.ports import MAX_ATTEMPTS


@dataclass
class _Held:
    job: Job
    request_hash: bytes
    due: float
    owner: str = ""
    lease_until: float = 0.0


class MemoryJobs:
    """`now` is a monotonic clock: leases and delays are measured on it."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._jobs: dict[tuple[str, str], _Held] = {}
        self._requests: dict[tuple[str, str, str], tuple[str, str]] = {}

    async def create(self, job: Job, request_id: str, request_hash: bytes) -> Job:
        before = await self.repeated(job.project, job.kind, request_id, request_hash)
        if before is not None:
            return before
        self._requests[job.project, job.kind, request_id] = job.project, job.id
        self._jobs[job.project, job.id] = _Held(job, request_hash, self._now())
        return job

    async def repeated(self, project: str, kind: str, request_id: str, request_hash: bytes) -> Job | None:
        asked = project, kind, request_id
        if not request_id or asked not in self._requests:
            return None
        first = self._jobs[self._requests[asked]]
        if first.request_hash != request_hash:
            raise InvalidArgument(
                f"request_id {request_id!r} was used for another {kind} request: use a new id for a new request.",
                reason="REQUEST_ID_REUSED",
                request_id=request_id,
            )
        return first.job

    async def claim(self, owner: str, kinds: Sequence[str], lease_seconds: float) -> Job | None:
        now = self._now()
        free: list[_Held] = []
        for held in self._jobs.values():
            silent = held.job.state is JobState.RUNNING and held.lease_until < now
            if silent and held.job.attempt >= MAX_ATTEMPTS:
                held.job = replace(
                    held.job, state=JobState.LOST, ended_at=datetime.now(UTC), error_reason="JOB_LOST",
                    error_message="Every process that ran the job died: look at their logs and submit it again.",
                )  # fmt: skip
            elif held.job.kind in kinds and held.due <= now and (silent or held.job.state is JobState.QUEUED):
                free.append(held)
        if not free:
            return None
        held = min(free, key=lambda h: h.job.created_at)
        held.owner, held.lease_until = owner, now + lease_seconds
        held.job = replace(held.job, state=JobState.RUNNING, attempt=held.job.attempt + 1)
        return held.job

    def _held_by(self, job: Job, owner: str) -> _Held | None:
        held = self._jobs.get((job.project, job.id))
        return held if held and held.job.state is JobState.RUNNING and held.owner == owner else None

    async def heartbeat(self, job: Job, owner: str, progress: Progress, lease_seconds: float) -> bool | None:
        held = self._held_by(job, owner)
        if held is None:
            return None
        held.lease_until = self._now() + lease_seconds
        held.job = replace(held.job, progress=progress)
        return held.job.cancel_requested

    async def save_checkpoint(self, job: Job, owner: str, checkpoint: bytes) -> None:
        held = self._held_by(job, owner)
        if held is not None:
            held.job = replace(held.job, checkpoint=checkpoint)

    async def finish(self, job: Job, owner: str) -> None:
        held = self._held_by(job, owner)
        if held is not None:
            held.job = replace(
                held.job, state=job.state, progress=job.progress, ended_at=job.ended_at, error_reason=job.error_reason,
                error_message=job.error_message, result=job.result,
            )  # fmt: skip

    async def requeue(self, job: Job, owner: str, delay_seconds: float) -> None:
        held = self._held_by(job, owner)
        if held is not None:
            held.due = self._now() + delay_seconds
            held.job = replace(held.job, state=JobState.QUEUED)

    async def get(self, project: str, job_id: str) -> Job | None:
        held = self._jobs.get((project, job_id))
        return held.job if held else None

    async def list(self, project: str, *, kind: str, state: str, before: str, limit: int) -> list[Job]:
        found = [
            held.job
            for (of, job_id), held in self._jobs.items()
            if of == project
            and kind in ("", held.job.kind)
            and state in ("", held.job.state)
            and (not before or job_id < before)
        ]
        return sorted(found, key=lambda j: j.id, reverse=True)[:limit]

    async def ended_since(self, kind: str, since: datetime) -> Sequence[Job]:
        ended = [
            (h.job.ended_at, h.job.id, h.job)
            for h in self._jobs.values()
            if h.job.kind == kind and h.job.ended_at
        ]
        return [job for at, _, job in sorted(ended, key=lambda e: e[:2]) if at >= since]

    async def request_cancel(self, project: str, job_id: str) -> Job | None:
        held = self._jobs.get((project, job_id))
        if held is None:
            return None
        if held.job.state is JobState.QUEUED:
            held.job = replace(held.job, state=JobState.CANCELLED, ended_at=datetime.now(UTC))
        if not held.job.state.ended or held.job.state is JobState.CANCELLED:
            held.job = replace(held.job, cancel_requested=True)
        return held.job
