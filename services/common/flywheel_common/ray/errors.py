"""Errors of the engine that runs jobs."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition, Unavailable


class EngineUnavailable(Unavailable):
    """The job engine does not answer, or lost the job; a job may have been submitted or stopped."""

    reason = "ENGINE_UNAVAILABLE"
    remedy = "Retry with backoff; check that Ray runs and has free CPUs."


class EngineRefused(FailedPrecondition):
    """The job engine refuses the job, and will refuse it again."""

    reason = "ENGINE_REFUSED"
    remedy = "Correct what the message names, and submit the job again."
