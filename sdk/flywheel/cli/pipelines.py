"""The commands `flywheel pipelines …`: apply, list, show, run, rerun, approve, backfill and others."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, console, show, show_list, state
from flywheel.client import Client
from flywheel.connection import now, request_id
from flywheel.graph_drawing import drawing
from flywheel.pipeline_builder import pipelines_in
from flywheel.types import duration
from flywheel_protos.trainer.v1 import pipeline_graph_pb2, trainer_pb2
from flywheel_protos.types.v1 import job_pb2

pipelines = typer.Typer(no_args_is_help=True, help="Pipelines as code, and their runs.")

Run = Annotated[str, typer.Argument(help="Id or full name of the pipeline run")]
Name = Annotated[str, typer.Argument(help="Id or full name, optionally with /versions/N")]
Params = Annotated[str, typer.Option(help='Parameters as JSON: {"end": "2013-06-01T00:00:00Z"}')]
Reason = Annotated[str, typer.Option(help="Shown with the step")]


@pipelines.command("apply")
def apply(file: Annotated[Path, typer.Argument(help="Python file with @fw.pipeline functions")]) -> None:
    """Compile the pipelines of a file and store those that changed as new versions."""

    async def work(client: Client) -> None:
        for definition in pipelines_in(file):
            applied = await client.apply_pipeline(definition)
            console.print(f"{applied.pipeline.name} {'created' if applied.created else 'unchanged'}")

    call(work)


@pipelines.command("list")
def list_pipelines(limit: Limit = DEFAULT_LIMIT) -> None:
    """List the newest versions of the pipelines."""

    async def work(client: Client) -> None:
        request = pipeline_graph_pb2.ListPipelinesRequest(parent=client.parent)
        columns = ["name", "content_hash", "created_by", "created_at"]
        await show_list(client.trainer.ListPipelines, request, "pipelines", columns, limit)

    call(work)


@pipelines.command("runs")
def list_runs(
    where: Annotated[str, typer.Option(help="e.g. state=RUNNING")] = "", limit: Limit = DEFAULT_LIMIT
) -> None:
    """List runs, newest first."""

    async def work(client: Client) -> None:
        request = trainer_pb2.ListPipelineRunsRequest(parent=client.parent, filter=where)
        columns = ["name", "pipeline", "state", "model_version", "error_message", "created_at"]
        await show_list(client.trainer.ListPipelineRuns, request, "pipeline_runs", columns, limit)

    call(work)


@pipelines.command("show")
def show_run(
    run: Run, watch: Annotated[bool, typer.Option(help="Show each change until the end")] = False
) -> None:
    """Draw the graph of a run with the states and durations of its steps."""

    async def work(client: Client) -> None:
        if watch:
            await client.wait_pipeline(run, _draw)
            return
        request = trainer_pb2.GetPipelineRunRequest(name=client.path("pipelineRuns", run))
        _draw((await client.trainer.GetPipelineRun(request)).pipeline_run)

    call(work)


@pipelines.command("run")
def run_pipeline(
    pipeline: Name,
    params: Params = "{}",
    wait: Annotated[bool, typer.Option(help="Wait for the end; exit with status 1 on failure")] = False,
) -> None:
    """Start a run of a stored pipeline."""

    async def work(client: Client) -> None:
        started = await client.run_pipeline(pipeline, _params(params))
        console.print(started.name, highlight=False, soft_wrap=True)
        if wait:
            _draw(await client.wait_pipeline(started.name))

    call(work)


@pipelines.command("rerun")
def rerun(
    run: Run,
    from_step: Annotated[
        str, typer.Option("--from", help="First step to run again; default: those that did not succeed")
    ] = "",
) -> None:
    """Start a new run that keeps the outputs of the other steps."""

    async def work(client: Client) -> None:
        console.print((await client.rerun_pipeline(run, from_step)).name, highlight=False, soft_wrap=True)

    call(work)


@pipelines.command("approve")
def approve(run: Run, step: str, reason: Reason = "") -> None:
    """Approve a step that waits for it."""
    _decide(run, step, approved=True, reason=reason)


@pipelines.command("reject")
def reject(run: Run, step: str, reason: Reason = "") -> None:
    """Reject a step that waits for approval; the run fails."""
    _decide(run, step, approved=False, reason=reason)


@pipelines.command("cancel")
def cancel(run: Run) -> None:
    """Cancel a run; jobs in progress are stopped."""

    async def work(client: Client) -> None:
        request = trainer_pb2.CancelPipelineRunRequest(
            name=client.path("pipelineRuns", run), request_id=request_id()
        )
        _draw((await client.trainer.CancelPipelineRun(request)).pipeline_run)

    call(work)


@pipelines.command("backfill")
def backfill(
    pipeline: Name,
    start: Annotated[datetime, typer.Option("--from", help="UTC")],
    end: Annotated[datetime, typer.Option("--to", help="UTC, exclusive")],
    every: Annotated[str, typer.Option(help="Length of an interval, e.g. 7d")] = "1d",
    params: Params = "{}",
) -> None:
    """Run a pipeline for each interval of a date range, as its parameters `start` and `end`."""

    async def work(client: Client) -> None:
        ended = await client.backfill(pipeline, start, end, duration(every), params=_params(params))
        for run in ended:
            console.print(f"{run.name} {job_pb2.JobState.Name(run.state)}", highlight=False, soft_wrap=True)

    call(work)


def _decide(run: str, step: str, *, approved: bool, reason: str) -> None:
    async def work(client: Client) -> None:
        _draw(await client.approve_step(run, step, approved=approved, reason=reason))

    call(work)


def _draw(run: trainer_pb2.PipelineRun) -> None:
    if state["json"]:
        show(run)
        return
    head = job_pb2.JobState.Name(run.state).removeprefix("JOB_STATE_")
    console.print(
        f"{run.name} {head} {run.error_reason} {run.error_message}".rstrip(), highlight=False, soft_wrap=True
    )
    for line in drawing(run, now()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _params(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise typer.BadParameter("params must be a JSON object")
    return found
