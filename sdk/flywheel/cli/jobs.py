"""`flywheel jobs`: submit, follow and cancel jobs of any kind."""

from __future__ import annotations

from typing import Annotated

import typer

from flywheel.cli.objects import only_object
from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, console, errors, show, show_list
from flywheel.client import Client
from flywheel.connection import request_id
from flywheel.errors import JobFailedError
from flywheel.model_jobs import EvaluateJob, ExportJob
from flywheel.score_job import ScoreJob
from flywheel.train_job import TrainJob
from flywheel_protos.trainer.v1 import checkpoint_pb2, trainer_pb2
from flywheel_protos.types.v1 import job_pb2

KINDS: tuple[type[TrainJob | EvaluateJob | ExportJob | ScoreJob], ...] = (
    TrainJob,
    EvaluateJob,
    ExportJob,
    ScoreJob,
)
jobs = typer.Typer(no_args_is_help=True, help="Training, evaluation, export and scoring jobs.")


@jobs.command("run")
def run(
    file: Annotated[str, typer.Argument(help="A .py file with one job, e.g. a fw.EvaluateJob")],
    request: Annotated[str, typer.Option(help="Calls with the same id run one job")] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's name and do not wait")] = False,
) -> None:
    """Submit the job of a file, follow its log, and show its run."""

    async def work(client: Client) -> None:
        job = await client.submit_job(only_object(file, KINDS), request=request)
        if detach:
            console.print(job.name, highlight=False)
            return
        errors.print(f"started {job.name}", highlight=False)
        ended = await _follow(client, job.name)
        show((await client.trainer.GetRun(trainer_pb2.GetRunRequest(name=ended.run))).run)

    call(work)


@jobs.command("list")
def list_jobs(
    where: Annotated[str, typer.Option(help="e.g. state=RUNNING")] = "", limit: Limit = DEFAULT_LIMIT
) -> None:
    """List jobs, newest first."""

    async def work(client: Client) -> None:
        request = trainer_pb2.ListJobsRequest(parent=client.parent, filter=where)
        columns = ["name", "kind", "state", "progress", "run", "error_reason", "created_at", "ended_at"]
        await show_list(client.trainer.ListJobs, request, "jobs", columns, limit)

    call(work)


@jobs.command("show")
def show_job(job: str) -> None:
    """Show one job with its attempts."""

    async def work(client: Client) -> None:
        show((await client.trainer.GetJob(trainer_pb2.GetJobRequest(name=client.path("jobs", job)))).job)

    call(work)


@jobs.command("checkpoints")
def checkpoints(job: str, limit: Limit = DEFAULT_LIMIT) -> None:
    """List the complete checkpoints of a job and of its trials, oldest first."""

    async def work(client: Client) -> None:
        request = checkpoint_pb2.ListCheckpointsRequest(parent=client.path("jobs", job))
        columns = ["step", "attempt", "world_size", "size_bytes", "created_at", "metrics", "uri"]
        await show_list(client.trainer.ListCheckpoints, request, "checkpoints", columns, limit)

    call(work)


@jobs.command("logs")
def logs(
    job: str,
    stream: Annotated[str, typer.Option(help="driver or rank-N")] = "driver",
) -> None:
    """Print the log of a job, and follow it until the job ends."""

    async def work(client: Client) -> None:
        await _follow(client, client.path("jobs", job), stream)

    call(work)


@jobs.command("cancel")
def cancel(job: str) -> None:
    """Ask for the end of a job; it is CANCELLED when its processes have ended."""

    async def work(client: Client) -> None:
        request = trainer_pb2.CancelJobRequest(name=client.path("jobs", job), request_id=request_id())
        show((await client.trainer.CancelJob(request)).job)

    call(work)


async def _follow(client: Client, name: str, stream: str = "driver") -> trainer_pb2.Job:
    """Print the log as it grows, and return the job when it has ended. Raises JobFailedError."""
    job = trainer_pb2.Job(name=name)
    watch = client.trainer.WatchJob(trainer_pb2.WatchJobRequest(name=name, log_stream=stream))
    async for message in client.answers(watch):
        job = message.job
        if message.log:
            console.print(message.log, end="", markup=False, highlight=False, soft_wrap=True)
    if job.state != job_pb2.JOB_STATE_SUCCEEDED:
        raise JobFailedError(job.name, job.error_reason, job.error_message)
    return job
