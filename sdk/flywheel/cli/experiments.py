"""Commands for experiments: `flywheel experiments create | show | list | conclude`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from google.protobuf import json_format
from rich.table import Table

from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, console, show, show_list, state
from flywheel.client import Client
from flywheel.connection import request_id
from flywheel.definitions import load_module
from flywheel.experiments import Experiment
from flywheel_protos.monitor.v1 import experiment_pb2 as pb

experiments = typer.Typer(no_args_is_help=True, help="A/B tests: metrics, intervals and verdicts.")


@experiments.command("create")
def create(
    file: Annotated[
        Path, typer.Argument(help="Python file with fw.Experiment objects, or JSON of an Experiment")
    ],
) -> None:
    """Start the experiments of a file."""

    async def work(client: Client) -> None:
        if file.suffix == ".json":
            message = json_format.Parse(file.read_text(), pb.Experiment())
            request = pb.CreateExperimentRequest(experiment=message, request_id=request_id())
            show((await client.monitor.CreateExperiment(request)).experiment)
            return
        found = [item for item in vars(load_module(file)).values() if isinstance(item, Experiment)]
        if not found:
            raise ValueError(f"{file} declares no fw.Experiment.")
        for item in found:
            show(await client.start_experiment(item))

    call(work)


@experiments.command("show")
def show_one(name: str) -> None:
    """Print the verdict of an experiment, its reasons and its metrics."""

    async def work(client: Client) -> None:
        found = await client.experiment_report(name)
        if state["json"]:
            show(found)
            return
        report = found.report
        verdict = pb.ExperimentVerdict.Name(report.verdict).removeprefix("EXPERIMENT_VERDICT_")
        console.print(f"[bold]{verdict}[/bold] {found.experiment.name}", highlight=False)
        for reason in report.reasons:
            console.print(f"- {reason}", highlight=False, markup=False)
        console.print(_table(report))

    call(work)


@experiments.command("list")
def list_all(model: str, limit: Limit = DEFAULT_LIMIT) -> None:
    """List the experiments of a model, newest first."""

    async def work(client: Client) -> None:
        request = pb.ListExperimentsRequest(parent=client.path("models", model))
        columns = ["name", "state", "weeks", "verdict", "created_by", "created_at"]
        await show_list(client.monitor.ListExperiments, request, "experiments", columns, limit)

    call(work)


@experiments.command("conclude")
def conclude(
    name: str,
    verdict: Annotated[Literal["SHIP", "ROLL_BACK", "CONTINUE"], typer.Argument()],
    reason: Annotated[str, typer.Option(help="Why it ends")],
) -> None:
    """End an experiment; it counts nothing more."""

    async def work(client: Client) -> None:
        show(await client.conclude_experiment(name, verdict, reason))

    call(work)


def _table(report: pb.ExperimentReport) -> Table:
    arms = [f"{arm.subjects} subjects" for arm in (report.control, report.treatment)]
    table = Table("metric", f"control\n{arms[0]}", f"treatment\n{arms[1]}", "difference", "interval", "state")
    for m in report.metrics:
        decided = "passed" if m.passed else "failed" if m.failed else "open"
        table.add_row(
            m.name,
            f"{m.control:.5g}",
            f"{m.treatment:.5g}",
            f"{m.difference:+.4g}" if m.HasField("difference") else "",
            f"[{m.lower:+.4g}, {m.upper:+.4g}]".replace("[", "\\["),
            decided if m.role != pb.METRIC_ROLE_SECONDARY else "",
        )
    return table
