"""Keys of a job's files on the object store."""

from __future__ import annotations

from flywheel_trainer.jobs.job import JobName

SPEC, OUTCOME, LOG, CHECKPOINTS = "spec.json", "outcome.json", "log.txt", "checkpoints"


def file_key(name: JobName, file: str) -> str:
    return f"jobs/{name.project}/{name.job}/{file}"
