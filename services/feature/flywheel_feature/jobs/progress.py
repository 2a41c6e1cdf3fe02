"""What long work reports to and asks: progress, cancellation, the part that resumes after a crash."""

from __future__ import annotations

from typing import Protocol


class JobProgress(Protocol):
    """The part of jobs.JobContext that long work reports to."""

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None: ...

    def check_cancelled(self) -> None: ...


class ResumableJob(JobProgress, Protocol):
    """The part of jobs.JobContext that lets work start again where an earlier process began."""

    checkpoint: bytes
    """What was saved last, also by an earlier process; empty at the first start."""

    async def save_checkpoint(self, checkpoint: bytes) -> None:
        """It is kept when this returns."""
        ...


def is_cancelled(job: JobProgress) -> bool:
    """Whether `check_cancelled` would raise."""
    try:
        job.check_cancelled()
    except Exception:  # noqa: BLE001 - whatever it raises, it says that the job is to stop
        return True
    return False


class Stages:
    """A job's progress as one percentage that never falls. `reached`: what an earlier process has told."""

    def __init__(self, job: JobProgress, reached: int = 0) -> None:
        self._job = job
        self._reached = min(max(reached, 0), 100)
        self._low = self._high = 0

    def begin(self, until: int, since: int | None = None) -> None:
        """The next stage ends at this percentage; it begins where the last one ended, or at `since`."""
        self._low, self._high = self._high if since is None else since, until

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        part = min(done / total, 1.0) if total else 0.0
        self._reached = max(self._reached, int(self._low + part * (self._high - self._low)))
        self._job.progress(self._reached, 100, "%", message)

    @property
    def cancelled(self) -> bool:
        """Whether the job is to stop for good."""
        try:
            self._job.check_cancelled()
        except Exception:  # noqa: BLE001 - whatever it raises, it says that the job is to stop
            return True
        return False

    def check_cancelled(self) -> None:
        self._job.check_cancelled()
