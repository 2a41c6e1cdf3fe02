"""The port of the job queue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from flywheel_feature.jobs.model import Job, Progress

MAX_ATTEMPTS = 5
"""Starts of one job; a job whose last process died as well becomes LOST."""


class JobStore(Protocol):
    """Jobs in a database.

    Every method is one transaction and raises Unavailable while the database is down. A running job is held
    by one owner until its lease runs out; methods that take an owner change nothing when it no longer holds
    the job.
    """

    async def create(self, job: Job, request_id: str, request_hash: bytes) -> Job:
        """Insert a job, or return the one that this request_id made in this project and kind.

        An empty request_id always makes a new job. Raises InvalidArgument REQUEST_ID_REUSED when the
        request_id was used with another request_hash.
        """
        ...

    async def repeated(self, project: str, kind: str, request_id: str, request_hash: bytes) -> Job | None:
        """The job that `create` would return, None when it would insert one. Raises as `create`."""
        ...

    async def claim(self, owner: str, kinds: Sequence[str], lease_seconds: float) -> Job | None:
        """Claim the oldest due job of these kinds that has no owner: it is RUNNING and held by `owner` now.

        Two claimers never get the same job. A job whose lease has run out has no owner; after MAX_ATTEMPTS it
        becomes LOST instead.
        """
        ...

    async def heartbeat(self, job: Job, owner: str, progress: Progress, lease_seconds: float) -> bool | None:
        """Extend the lease and store progress.

        Returns whether cancellation is requested, None when `owner` no longer holds the job.
        """
        ...

    async def save_checkpoint(self, job: Job, owner: str, checkpoint: bytes) -> None:
        """Store the checkpoint that the next start of the job gets."""
        ...

    async def forget_request(self, job: Job, owner: str) -> None:
        """Empty the request; its hash stays, so that a repeated request_id is still recognized."""
        ...

    async def finish(self, job: Job, owner: str) -> None:
        """Store state, progress, error and result of an ended job."""
        ...

    async def requeue(self, job: Job, owner: str, delay_seconds: float) -> None:
        """Return a job to the queue; it can be claimed again after the delay."""
        ...

    async def get(self, project: str, job_id: str) -> Job | None: ...

    async def list(self, project: str, *, kind: str, state: str, before: str, limit: int) -> list[Job]:
        """Newest first. Empty `kind` or `state`: all. `before`: only ids smaller than this, unless empty."""
        ...

    async def ended_since(self, kind: str, since: datetime) -> Sequence[Job]:
        """Jobs of every project that ended at `since` or later, in any state, by end time."""
        ...

    async def request_cancel(self, project: str, job_id: str) -> Job | None:
        """Make a queued job CANCELLED, or mark a running one; returns the job, None for an unknown one."""
        ...
