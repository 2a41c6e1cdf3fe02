"""Keys of a job's files on the object store.

Every attempt has a folder of its own, so that a process of an earlier attempt cannot change a later one. Only
the log is shared (`jobs.logs`).
"""

from __future__ import annotations

from flywheel_trainer.jobs.job import JobName

SPEC = "spec.json"
OUTCOME = "outcome.json"
"""The outcome of a success, written by rank 0 as its last act."""
FAILURE = "failure.json"
"""The outcome of a failure, written by the driver. A success outranks it."""


def attempt_key(name: JobName, attempt: int, file: str) -> str:
    return f"jobs/{name.project}/{name.job}/attempts/{attempt}/{file}"


def log_prefix(name: JobName, stream: str) -> str:
    """The folder of the chunks of a log stream, without a slash at the end."""
    return f"jobs/{name.project}/{name.job}/logs/{stream}"
