"""`flywheel tune`: start a tuning job, follow it in a live table, register its best trial."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import Parse
from rich.live import Live
from rich.table import Table

from flywheel.cli.objects import only_object
from flywheel.cli.output import call, console, errors, show, show_all, state
from flywheel.client import Client
from flywheel.errors import JobFailedError
from flywheel.tune_job import TuneJob
from flywheel_protos.trainer.v1 import trainer_pb2, tuning_pb2
from flywheel_protos.types.v1 import job_pb2

POLL_SECONDS = 1.0
ROWS = 30
"""Trials in the live table: the best ones, then the newest."""
ACTIVE = (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING)


def tune(
    target: Annotated[
        str,
        typer.Argument(help="A .py file with a fw.TuneJob, a .json file of a TuneSpec, or the name of a job"),
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Show a live table until the job ends")] = False,
    register: Annotated[
        str, typer.Option(metavar="MODEL", help="Register the best trial when the job has ended")
    ] = "",
) -> None:
    """Start a tuning job, or show one that was started."""

    async def work(client: Client) -> None:
        name = await _start(client, target)
        job = await _follow(client, name) if watch or register else await _job(client, name)
        if not watch:
            show(job)
            show_all(
                await client.trials(name),
                ["number", "state", "params_json", "values", "error_reason", "started_at", "ended_at"],
            )
        if job.state not in ACTIVE and job.state != job_pb2.JOB_STATE_SUCCEEDED:
            raise JobFailedError(job.name, job.error_reason, job.error_message)
        if register:
            best = await client.best_trials(name)
            if not best:
                errors.print("Every trial breaks a constraint: nothing was registered.", highlight=False)
                raise typer.Exit(1)
            version = await client.register_trial(best[0], register)
            console.print(f"Registered trial {best[0].number} as {version}", highlight=False)

    try:
        call(work)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


async def _start(client: Client, target: str) -> str:
    """The name of the job."""
    if target.endswith(".py"):
        name = (await client.start_tuning(only_object(target, (TuneJob,)))).name
    elif target.endswith(".json"):
        spec = Parse(await asyncio.to_thread(Path(target).read_text), trainer_pb2.TuneSpec())
        name = (await client.submit_tuning(spec)).name
    else:
        return str(client.path("jobs", target))
    errors.print(f"started {name}", highlight=False)
    return str(name)


async def _job(client: Client, name: str) -> trainer_pb2.Job:
    return (await client.trainer.GetJob(trainer_pb2.GetJobRequest(name=name))).job


async def _follow(client: Client, name: str) -> trainer_pb2.Job:
    """Show the table, and return the job when it has ended; without a terminal the end alone is printed."""
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            job = await _job(client, name)
            trials, best = await client.trials(name), await client.best_trials(name)
            if not state["json"]:
                live.update(trial_table(job, trials, best), refresh=console.is_terminal)
            if job.state not in ACTIVE:
                return job
            await asyncio.sleep(POLL_SECONDS)


def trial_table(job: trainer_pb2.Job, trials: list[tuning_pb2.Trial], best: list[tuning_pb2.Trial]) -> Table:
    """The best trials so far in bold, then the newest ones."""
    objectives = [one.metric for one in job.tune.settings.objectives]
    progress = job.progress
    found = "; ".join(f"trial {one.number}: {_numbers(one.values)}" for one in best[:3]) or "none yet"
    title = f"{job.name} {job_pb2.JobState.Name(job.state).removeprefix('JOB_STATE_')}"
    caption = f"{progress.done} of {progress.total} trials ended, best: {found} {progress.message}".rstrip()
    table = Table(title=title, caption=caption)
    for column in ("trial", "params", *objectives, "state"):
        table.add_column(column, overflow="fold")
    numbers = {one.number for one in best}
    newest = [one for one in reversed(trials) if one.number not in numbers][: max(0, ROWS - len(best))]
    for one in (*best[:ROWS], *newest):
        table.add_row(
            str(one.number),
            _params(one.params_json),
            *_values(one, len(objectives)),
            tuning_pb2.TrialState.Name(one.state).removeprefix("TRIAL_STATE_"),
            style="bold green" if one.number in numbers else "",
        )
    return table


def _values(trial: tuning_pb2.Trial, count: int) -> list[str]:
    if trial.values:
        return [f"{value:.6g}" for value in trial.values]
    latest = trial.segments[-1].value if trial.segments else None
    latest = trial.last_value if trial.HasField("last_value") else latest
    return ["" if latest is None else f"{latest:.6g}", *[""] * (count - 1)]


def _params(text: str) -> str:
    params: dict[str, Any] = json.loads(text or "{}")
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in params.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
