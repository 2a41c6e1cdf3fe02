"""Names of a job's files on the object store."""

from __future__ import annotations

from flywheel_trainer.jobs.job import JobName

ARTIFACTS = "artifacts"


OUTCOME, LOG = "outcome.json", "log.txt"


def _key(name: JobName, file: str) -> str:
    return f"jobs/{name.project}/{name.job}/{file}"
