"""Keys of a job's files on the object store.

Every attempt has a folder of its own, so that a process of an earlier attempt cannot change a later one. Only
the log (`jobs.logs`) and the checkpoints are shared; each checkpoint names its attempt.
"""

from __future__ import annotations

from flywheel_trainer.jobs.job import JobName

SPEC = "spec.json"
OUTCOME = "outcome.json"
"""The outcome of a success, written by the driver when all ranks have returned."""
FAILURE = "failure.json"
"""The outcome of a failure, written by the driver. A success outranks it."""


def attempt_folder(name: JobName, attempt: int) -> str:
    """The folder of an attempt, without a slash at the end."""
    return f"jobs/{name.project}/{name.job}/attempts/{attempt}"


def attempt_key(name: JobName, attempt: int, file: str) -> str:
    return f"{attempt_folder(name, attempt)}/{file}"


def log_folder(name: JobName) -> str:
    """The folder of all log streams of a job, without a slash at the end."""
    return f"jobs/{name.project}/{name.job}/logs"


def log_prefix(name: JobName, stream: str) -> str:
    """The folder of the chunks of a log stream, without a slash at the end."""
    return f"{log_folder(name)}/{stream}"


def checkpoint_prefix(name: JobName) -> str:
    """The folder of a job's checkpoints, without a slash at the end."""
    return f"jobs/{name.project}/{name.job}/checkpoints"
