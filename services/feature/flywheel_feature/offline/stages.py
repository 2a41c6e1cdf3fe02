"""Progress of work that has several stages, each counting in a unit of its own."""

from __future__ import annotations

from flywheel_feature.offline.ports import JobProgress


class Stages:
    """A job's progress as one percentage that never falls. `reached`: what an earlier process has told."""

    def __init__(self, job: JobProgress, reached: int = 0) -> None:
        self._job = job
        self._reached = min(max(reached, 0), 100)
        self._low = self._high = 0

    def begin(self, until: int) -> None:
        """The next stage ends at this percentage."""
        self._low, self._high = self._high, until

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        part = min(done / total, 1.0) if total else 0.0
        self._reached = max(self._reached, int(self._low + part * (self._high - self._low)))
        counted = f"{message} ({done} of {total} {unit})" if total else message
        self._job.progress(self._reached, 100, "%", counted)

    def check_cancelled(self) -> None:
        self._job.check_cancelled()
