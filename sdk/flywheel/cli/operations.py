"""Commands for operations: runs, pipelines, alerts, drift, performance."""

from __future__ import annotations

from typing import Annotated

import typer

from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, console, show, show_all, show_list
from flywheel.cli.version_argument import ModelOrVersion, Version
from flywheel.client import Client
from flywheel.connection import request_id
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.trainer.v1 import trainer_pb2

runs = typer.Typer(no_args_is_help=True, help="Experiment runs, jobs, pipelines.")
alerts = typer.Typer(no_args_is_help=True, help="Drift, performance and alerts.")


@runs.command("list")
def list_runs(
    where: Annotated[str, typer.Option(help="e.g. metrics.auc>0.7")] = "",
    order_by: Annotated[str, typer.Option(help="e.g. -metrics.auc")] = "",
    limit: Limit = DEFAULT_LIMIT,
) -> None:
    """List runs, newest first or ordered by a metric."""

    async def work(client: Client) -> None:
        request = trainer_pb2.ListRunsRequest(parent=client.parent, filter=where, order_by=order_by)
        columns = ["name", "state", "metrics", "params", "training_set", "started_at"]
        await show_list(client.trainer.ListRuns, request, "runs", columns, limit)

    call(work)


@runs.command("show")
def show_run(run: str) -> None:
    """Show one run."""

    async def work(client: Client) -> None:
        show((await client.trainer.GetRun(trainer_pb2.GetRunRequest(name=client.path("runs", run)))).run)

    call(work)


@runs.command("pipelines")
def pipelines(limit: Limit = DEFAULT_LIMIT) -> None:
    """List pipeline runs, newest first."""

    async def work(client: Client) -> None:
        request = trainer_pb2.ListPipelineRunsRequest(parent=client.parent)
        columns = ["name", "state", "model_version", "rollout", "cause_alert", "error_message", "created_at"]
        await show_list(client.trainer.ListPipelineRuns, request, "pipeline_runs", columns, limit)

    call(work)


@alerts.command("list")
def list_alerts(
    where: Annotated[str, typer.Option(help="e.g. state=OPEN")] = "", limit: Limit = DEFAULT_LIMIT
) -> None:
    """List alerts, newest first."""

    async def work(client: Client) -> None:
        request = monitor_pb2.ListAlertsRequest(parent=client.parent, filter=where)
        columns = ["name", "kind", "state", "model_version", "window_end", "reason"]
        await show_list(client.monitor.ListAlerts, request, "alerts", columns, limit)

    call(work)


@alerts.command("ack")
def acknowledge(alert: str) -> None:
    """Acknowledge an alert: someone is working on it."""

    async def work(client: Client) -> None:
        request = monitor_pb2.AcknowledgeAlertRequest(
            name=client.path("alerts", alert), request_id=request_id()
        )
        show((await client.monitor.AcknowledgeAlert(request)).alert)

    call(work)


@alerts.command("resolve")
def resolve(alert: str, reason: Annotated[str, typer.Option(help="Stored with the alert")]) -> None:
    """Close an alert."""

    async def work(client: Client) -> None:
        request = monitor_pb2.ResolveAlertRequest(
            name=client.path("alerts", alert), reason=reason, request_id=request_id()
        )
        show((await client.monitor.ResolveAlert(request)).alert)

    call(work)


@alerts.command("drift")
def drift(model: ModelOrVersion) -> None:
    """Compare the last closed window of a model with its reference."""

    async def work(client: Client) -> None:
        request = monitor_pb2.GetDriftReportRequest(name=await client.resolve_served(model))
        report = (await client.monitor.GetDriftReport(request)).report
        window = f"{report.window_start.ToDatetime()} – {report.window_end.ToDatetime()}"
        console.print(f"{report.model_version} {window}: {report.reason}")
        show_all(
            report.features,
            [
                "feature",
                "psi_corrected",
                "ks",
                "adjusted_p_value",
                "mean_shift",
                "verdict",
                "silenced",
                "cause",
            ],
        )

    call(work)


@alerts.command("performance")
def performance(version: Version) -> None:
    """Show the quality of the labelled predictions of a version, by its kind of output, and its latency."""

    async def work(client: Client) -> None:
        request = monitor_pb2.GetPerformanceRequest(model_version=await client.resolve_version(version))
        show((await client.monitor.GetPerformance(request)).performance)

    call(work)
