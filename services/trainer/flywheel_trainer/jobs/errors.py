"""Errors of jobs."""

from __future__ import annotations

from flywheel_common.errors import NotFound
from flywheel_trainer.jobs.job import JobName


def unknown_job(name: JobName) -> NotFound:
    return NotFound(f"Job {str(name)!r} does not exist.", reason="UNKNOWN_JOB", job=name)
