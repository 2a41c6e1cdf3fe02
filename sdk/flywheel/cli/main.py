"""The `flywheel` command for data scientists and on-call engineers.

Commands print tables, or with `--json` the protobuf messages as JSON.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer

from flywheel.cli import alert_sinks, definitions, tracking
from flywheel.cli.experiments import experiments
from flywheel.cli.features import features
from flywheel.cli.jobs import jobs
from flywheel.cli.models import models
from flywheel.cli.monitor import monitor
from flywheel.cli.operations import alerts, runs
from flywheel.cli.output import call, show, show_all, state
from flywheel.cli.pipelines import pipelines
from flywheel.cli.policies import policies
from flywheel.cli.tuning import tune
from flywheel.cli.why import why
from flywheel.client import Client
from flywheel_protos.inference.v1 import inference_pb2
from flywheel_protos.monitor.v1 import monitor_pb2

app = typer.Typer(no_args_is_help=True, help="Declare features, train, release and watch models on Flywheel.")
groups = {
    "features": features,
    "models": models,
    "runs": runs,
    "jobs": jobs,
    "alerts": alerts,
    "monitor": monitor,
    "experiments": experiments,
}
for name, group in groups.items():
    app.add_typer(group, name=name)
app.add_typer(pipelines, name="pipelines")
app.add_typer(policies, name="policies")
definitions.add_commands(app, features)
tracking.add_commands(runs)
alert_sinks.add_silence(alerts)
alerts.add_typer(alert_sinks.sinks, name="sinks")
app.command()(tune)
models.command()(why)


@app.callback()
def options(
    project: Annotated[
        str, typer.Option(envvar="FLYWHEEL_PROJECT", help="Project that short names belong to")
    ] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print messages as JSON")] = False,
) -> None:
    """Options of all commands."""
    state.update(project=project, json=as_json)


@app.command()
def predict(
    model: str,
    entities: Annotated[str, typer.Option(help='Join keys as JSON: {"carrier": "UA"}')],
    request: Annotated[str, typer.Option(help="Request fields as JSON")] = "{}",
    as_of: Annotated[datetime | None, typer.Option(help="UTC; default: now")] = None,
) -> None:
    """Predict for one entity."""

    async def work(client: Client) -> None:
        show(await client.predict(model, json.loads(entities), json.loads(request), as_of=as_of))

    call(work)


@app.command()
def status() -> None:
    """Show the releases that the gateway serves and the progress of the monitor."""

    async def work(client: Client) -> None:
        serving = await client.inference.GetServingStatus(inference_pb2.GetServingStatusRequest())
        show_all(
            serving.models,
            [
                "model",
                "generation",
                "champion_release",
                "challenger_release",
                "challenger_percent",
                "failures",
            ],
        )
        show(
            await client.monitor.GetIngestStatus(monitor_pb2.GetIngestStatusRequest(parent=client.parent)),
            "monitor",
        )

    call(work)


def main() -> None:
    """Entry point of `flywheel`."""
    app()
