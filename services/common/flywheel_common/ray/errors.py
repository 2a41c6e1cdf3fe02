"""Errors of the engine that runs jobs."""

from __future__ import annotations

from flywheel_common.errors import Unavailable


class EngineUnavailable(Unavailable):
    """The job engine does not answer, refuses the job, or lost it; a job may have been submitted or
    stopped."""

    reason = "ENGINE_UNAVAILABLE"
    remedy = "Retry with backoff; check that Ray runs and has free CPUs."
