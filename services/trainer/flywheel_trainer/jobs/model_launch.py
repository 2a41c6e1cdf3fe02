"""The launch of a job that runs one built-in function over models and one data set."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from flywheel_job.artifacts import ARTIFACTS
from flywheel_job.launch import DataSet, LaunchSpec, Resources
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.files import FAILURE, OUTCOME, SPEC, attempt_key, checkpoint_prefix, log_prefix
from flywheel_trainer.jobs.job import Job
from flywheel_trainer.jobs.kinds import Launch
from flywheel_trainer.jobs.resources import Request
from flywheel_trainer.jobs.train import DRIVER, TrainSettings


def launch_of(
    job: Job,
    attempt: int,
    settings: TrainSettings,
    request: Request,
    function: str,
    details: Mapping[str, Any],
    seed: int,
) -> Launch:
    """The launch; `details` has `params`, `models`, and `data` by name as the fields of a DataSet."""

    def uri(file: str) -> str:
        return f"s3://{settings.bucket}/{attempt_key(job.name, attempt, file)}"

    spec = LaunchSpec(
        job=str(job.name),
        run=str(job.run),
        attempt=attempt,
        function=function,
        output_uri=f"s3://{settings.bucket}/{ARTIFACTS}",
        outcome_uri=uri(OUTCOME),
        failure_uri=uri(FAILURE),
        checkpoint_uri=f"s3://{settings.bucket}/{checkpoint_prefix(job.name)}",
        log_uri=f"s3://{settings.bucket}/{log_prefix(job.name, '').rstrip('/')}",
        trainer_address=settings.metrics_address,
        params=details["params"],
        models=details["models"],
        data={name: DataSet(**fields) for name, fields in details["data"].items()},
        resources=Resources(cpus=request.cpus_per_worker),
        seed=seed,
    )
    command = (settings.python, "-m", DRIVER, uri(SPEC))
    return Launch({SPEC: spec.to_json()}, command, reads=spec.inputs)


async def outcome_of(read: Callable[[str], Awaitable[bytes | None]], file: str) -> Outcome | None:
    """The outcome in a file of an attempt; None if there is none, or not a complete one."""
    data = await read(file)
    try:
        return None if data is None else Outcome.from_json(data)
    except ValueError:
        return None
