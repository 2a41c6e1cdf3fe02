"""Pipeline runs and jobs of the trainer: reading, cancelling, failures and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict

import flywheel as fw
from flywheel.errors import JobFailedError
from flywheel_common.errors import FlywheelError
from flywheel_protos.trainer.v1 import trainer_pb2
from flywheel_protos.types.v1 import job_pb2

UNSUCCESSFUL = (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_STATE_LOST)


@dataclass(frozen=True)
class Calls:
    """The calls for one kind of resource."""

    field: str
    get: str
    get_request: Any
    cancel: str
    cancel_request: Any


_JOBS = Calls("job", "GetJob", trainer_pb2.GetJobRequest, "CancelJob", trainer_pb2.CancelJobRequest)
_PIPELINE_RUNS = Calls(
    "pipeline_run",
    "GetPipelineRun",
    trainer_pb2.GetPipelineRunRequest,
    "CancelPipelineRun",
    trainer_pb2.CancelPipelineRunRequest,
)


def calls_of(name: str) -> Calls:
    """The calls for a resource name."""
    return _PIPELINE_RUNS if "/pipelineRuns/" in name else _JOBS


def read(client: fw.SyncClient, name: str) -> Any:
    """The job or pipeline run of this name."""
    calls = calls_of(name)
    return getattr(getattr(client.trainer, calls.get)(calls.get_request(name=name)), calls.field)


async def read_async(client: fw.Client, name: str) -> Any:
    """The job or pipeline run of this name."""
    calls = calls_of(name)
    return getattr(await getattr(client.trainer, calls.get)(calls.get_request(name=name)), calls.field)


def cancellation(client: Any, name: str) -> Any:
    """Requests the cancellation: the result of the call, to be awaited for an asynchronous client."""
    calls = calls_of(name)
    request = calls.cancel_request(name=name, request_id=f"airflow-cancel/{name}")
    return getattr(client.trainer, calls.cancel)(request)


def has_ended(work: Any) -> bool:
    return bool(work.HasField("ended_at"))


def is_given_up(work: Any) -> bool:
    """Whether a further try needs a new run or job."""
    return work.state in UNSUCCESSFUL or work.cancel_requested


def passes(error: BaseException) -> bool:
    """Whether a repeated call can succeed."""
    return isinstance(error, FlywheelError) and error.retryable


def check(work: Any) -> None:
    """Raises JobFailedError unless it SUCCEEDED."""
    if work.state != job_pb2.JOB_STATE_SUCCEEDED:
        raise JobFailedError(work.name, work.error_reason, work.error_message)


def outputs(client: fw.SyncClient, work: Any) -> dict[str, Any]:
    """What other tasks get, as JSON."""
    if isinstance(work, trainer_pb2.PipelineRun):
        return _of_pipeline_run(work)
    return _of_job(work, client.trainer.GetRun(trainer_pb2.GetRunRequest(name=work.run)).run)


def _of_pipeline_run(run: trainer_pb2.PipelineRun) -> dict[str, Any]:
    names = ("training_set", "run", "model_version", "release", "rollout")
    steps = {step.step: MessageToDict(step.outputs) for step in run.steps}
    return {
        "pipeline_run": run.name,
        "pipeline": run.pipeline,
        "state": job_pb2.JobState.Name(run.state).removeprefix("JOB_STATE_"),
        **{name: getattr(run, name) for name in names},
        "gate_passed": run.gate_passed,
        "evidence": {
            step.step: {
                "passed": steps[step.step].get("passed"),
                "findings": steps[step.step].get("findings"),
            }
            for step in run.steps
            if step.kind == "register"
        },
        "steps": steps,
    }


def _of_job(job: trainer_pb2.Job, run: trainer_pb2.Run) -> dict[str, Any]:
    return {
        "job": job.name,
        "kind": job.kind,
        "state": job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_"),
        "run": run.name,
        "training_set": run.training_set,
        "metrics": dict(run.metrics),
        "params": dict(run.params),
        "artifacts": {one.name: {"sha256": one.sha256, "uri": one.uri} for one in run.artifacts},
    }
