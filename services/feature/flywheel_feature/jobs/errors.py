"""Errors of long-running jobs."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition, NotFound, Unavailable


class UnknownJob(NotFound):
    """The project has no job of this name."""

    reason = "UNKNOWN_JOB"
    remedy = "Look the name up with ListJobs."


class JobEnded(FailedPrecondition):
    """The job has ended and cannot be cancelled."""

    reason = "JOB_ENDED"
    remedy = "Read the result with GetJob."


class JobLost(Unavailable):
    """Every process that ran the job died. Stored as the error of the job; no call fails with it."""

    reason = "JOB_LOST"
    remedy = "Look for the cause in the logs of the processes, then submit the job again."
