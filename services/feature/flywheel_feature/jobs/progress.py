"""Ports through which long work reports progress, learns of cancellation and saves checkpoints."""

from __future__ import annotations

from typing import Protocol


class JobProgress(Protocol):
    """The part of runner.JobContext that long work reports to."""

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        """Report how far the work is; cheap, callable from any thread."""
        ...

    def check_cancelled(self) -> None:
        """Raises when the work should stop; callable from any thread."""
        ...


class ResumableJob(JobProgress, Protocol):
    """The part of runner.JobContext that lets work resume where an earlier process stopped."""

    checkpoint: bytes
    """The checkpoint saved last, also by an earlier process; empty at the first start."""

    async def save_checkpoint(self, checkpoint: bytes) -> None:
        """Store a checkpoint; it is durable when this returns."""
        ...


def is_cancelled(job: JobProgress) -> bool:
    """Whether `check_cancelled` would raise."""
    try:
        job.check_cancelled()
    except Exception:  # noqa: BLE001 - any exception of check_cancelled means that the job should stop
        return True
    return False


class Stages:
    """The progress of a job with several stages, as one percentage that never falls.

    `reached`: the percentage that an earlier process reported.
    """

    def __init__(self, job: JobProgress, reached: int = 0) -> None:
        self._job = job
        self._reached = min(max(reached, 0), 100)
        self._low = self._high = 0

    def begin(self, until: int, since: int | None = None) -> None:
        """Begin a stage from the percentage `since` (where the last one ended, by default) to `until`."""
        self._low, self._high = self._high if since is None else since, until

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        part = min(done / total, 1.0) if total else 0.0
        self._reached = max(self._reached, int(self._low + part * (self._high - self._low)))
        self._job.progress(self._reached, 100, "%", message)

    @property
    def cancelled(self) -> bool:
        return is_cancelled(self._job)

    def check_cancelled(self) -> None:
        self._job.check_cancelled()
