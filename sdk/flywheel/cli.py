"""The `flywheel` command: what a data scientist and an on-call person do, one call each.

Every answer is a table for people, or with `--json` the protobuf message as JSON for programs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from flywheel import cli_definitions
from flywheel.cli_output import call, console, errors, show, show_all, state
from flywheel.client import Client, request_id
from flywheel.report import alerts_table, versions_table
from flywheel.watching import ModelWatch
from flywheel_protos.feature.v1 import feature_pb2
from flywheel_protos.inference.v1 import inference_pb2
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.registry.v1 import registry_pb2
from flywheel_protos.trainer.v1 import trainer_pb2
from flywheel_protos.types.v1 import value_pb2

app = typer.Typer(no_args_is_help=True, help="Declare features, train, release and watch models on Flywheel.")
features = typer.Typer(no_args_is_help=True, help="Online features, freshness, training sets.")
models = typer.Typer(no_args_is_help=True, help="Models, versions, rollouts, rollback, audit.")
runs = typer.Typer(no_args_is_help=True, help="Experiment runs, jobs, pipelines.")
alerts = typer.Typer(no_args_is_help=True, help="Drift, performance and alerts.")
for name, group in {"features": features, "models": models, "runs": runs, "alerts": alerts}.items():
    app.add_typer(group, name=name)
cli_definitions.add_commands(app, features)


@app.callback()
def options(
    project: Annotated[
        str, typer.Option(envvar="FLYWHEEL_PROJECT", help="Project of short names")
    ] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print messages as JSON")] = False,
) -> None:
    state.update(project=project, json=as_json)


@features.command("get")
def get_features(
    feature_set: str,
    entities: Annotated[str, typer.Option(help='Join keys as JSON: {"carrier": "UA"}')],
    request: Annotated[str, typer.Option(help="Request fields as JSON")] = "",
    as_of: Annotated[datetime | None, typer.Option(help="UTC; default now")] = None,
) -> None:
    """Read one entity's features as of a time."""
    keys = {key: [value] for key, value in json.loads(entities).items()}
    fields = {key: [value] for key, value in json.loads(request).items()} if request else None

    async def work(client: Client) -> None:
        answer = await client.online_features(feature_set, keys, fields, as_of=as_of, readable=True)
        table = Table("feature", "value", "status")
        for name, value in sorted(answer.rows[0].values.items()):
            status = feature_pb2.FeatureStatus.Name(answer.rows[0].statuses[name]).removeprefix(
                "FEATURE_STATUS_"
            )
            table.add_row(name, str(value).strip().split(": ", 1)[-1], status)
        console.print(table)

    call(work)


@features.command("materialize")
def materialize(
    view: str,
    start: Annotated[datetime | None, typer.Option(help="Event time to begin at; else what is new")] = None,
    end: Annotated[datetime | None, typer.Option(help="Event time to end before")] = None,
    rows_per_second: Annotated[int, typer.Option(help="At most so many; 0: no limit of yours")] = 0,
) -> None:
    """Write a batch view's new rows online."""

    async def work(client: Client) -> None:
        job = await client.materialize(
            view, show_progress, start=start, end=end, rows_per_second=rows_per_second
        )
        show(job)

    call(work)


@features.command("rebuild")
def rebuild() -> None:
    """Fill an online store that lost its contents from the archives on S3."""

    async def work(client: Client) -> None:
        show(await client.rebuild_online_store(show_progress))

    call(work)


@features.command("erase")
def erase(
    entity: str, keys: Annotated[list[str], typer.Argument(help="key=value of every join key")]
) -> None:
    """Erase one entity everywhere and show what is left to others."""

    async def work(client: Client) -> None:
        described = (
            await client.feature.GetEntity(feature_pb2.GetEntityRequest(name=client.path("entities", entity)))
        ).entity
        numbers = {k.name for k in described.join_keys if k.data_type == value_pb2.DATA_TYPE_INT64}
        given = dict(pair.split("=", 1) for pair in keys)
        typed = {k: int(v) if k in numbers else v for k, v in given.items()}
        show(await client.erase_entity(entity, typed, show_progress))

    call(work)


def show_progress(job: feature_pb2.Job) -> None:
    """One line on standard error per change."""
    errors.print(
        f"{job.progress.done:,} of {job.progress.total:,} {job.progress.unit}: {job.progress.message}"
    )


@features.command("freshness")
def freshness() -> None:
    """How far streams are applied and batch views materialized."""

    async def work(client: Client) -> None:
        answer = await client.feature.GetFreshness(feature_pb2.GetFreshnessRequest(parent=client.parent))
        show_all(answer.freshness, ["name", "watermark", "lag_events", "archived_events"])

    call(work)


@features.command("training-sets")
def training_sets() -> None:
    """Training sets, newest first."""

    async def work(client: Client) -> None:
        answer = await client.feature.ListTrainingSets(
            feature_pb2.ListTrainingSetsRequest(parent=client.parent)
        )
        show_all(
            answer.training_sets, ["name", "row_count", "label_mean", "min_time", "max_time", "content_hash"]
        )

    call(work)


@models.command("list")
def list_models() -> None:
    """Models with what serves."""

    async def work(client: Client) -> None:
        answer = await client.registry.ListModels(registry_pb2.ListModelsRequest(parent=client.parent))
        show_all(answer.models, ["name", "production_version", "production_release", "owner"])

    call(work)


@models.command("report")
def report(model: str) -> None:
    """What each version was worth on what it served, and what was alerted."""

    async def work(client: Client) -> None:
        console.print(await versions_table(client, model))
        console.print(await alerts_table(client, model))

    call(work)


@models.command("watch")
def watch(model: str, seconds: Annotated[float, typer.Option(help="Pause between two looks")] = 1.0) -> None:
    """Tell alerts, trainings and rollouts as they happen, until Ctrl-C."""

    async def work(client: Client) -> None:
        watched = ModelWatch(client, model)
        while True:
            for news in await watched.poll():
                console.print(f"[bold]{news.kind:>8}[/bold] {news.text}", highlight=False)
            await asyncio.sleep(seconds)

    try:
        call(work)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@models.command("versions")
def list_versions(model: str) -> None:
    """A model's versions, newest first."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListModelVersionsRequest(parent=client.path("models", model))
        answer = await client.registry.ListModelVersions(request)
        show_all(
            answer.model_versions,
            ["name", "stage", "metrics", "training_dataset", "cause_alert", "registered_at"],
        )

    call(work)


@models.command("history")
def history(model: str) -> None:
    """Which release served when, and why."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListServingHistoryRequest(parent=client.path("models", model))
        show_all(
            (await client.registry.ListServingHistory(request)).spans,
            ["release", "model_version", "from", "until", "reason"],
        )

    call(work)


@models.command("audit")
def audit(model: str) -> None:
    """Who did what and why, newest first."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListAuditEntriesRequest(parent=client.path("models", model))
        answer = await client.registry.ListAuditEntries(request)
        show_all(answer.entries, ["at", "actor", "action", "subject", "from_state", "to_state", "reason"])

    call(work)


@models.command("rollouts")
def rollouts(model: str) -> None:
    """A model's rollouts, newest first."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListRolloutsRequest(parent=client.path("models", model))
        answer = await client.registry.ListRollouts(request)
        show_all(answer.rollouts, ["name", "state", "challenger_percent", "challenger_release", "reason"])

    call(work)


def _steer(verb: str) -> Callable[[str, str], None]:
    def command(rollout: str, reason: Annotated[str, typer.Option(help="Written to the audit")]) -> None:
        async def work(client: Client) -> None:
            request = getattr(registry_pb2, f"{verb}Request")(
                name=rollout, reason=reason, request_id=request_id()
            )
            show((await getattr(client.registry, verb)(request)).rollout)

        call(work)

    return command


for verb, label, text in (
    ("PauseRollout", "pause", "Stop deciding; routing stays."),
    ("ResumeRollout", "resume", "Go on deciding."),
    ("AbortRollout", "abort", "End it with the champion serving everybody."),
    ("SkipRolloutStep", "skip", "Go to the next step without evidence."),
):
    models.command(label, help=text)(_steer(verb))


@models.command("rollback")
def rollback(model: str, reason: Annotated[str, typer.Option(help="Written to the audit")]) -> None:
    """Serve the release that served before; returns when every live gateway has acknowledged."""

    async def work(client: Client) -> None:
        answer = await client.rollback(model, reason)
        console.print(
            f"{answer.model.production_release} serves after {answer.elapsed.ToTimedelta().total_seconds():.3f} s"
        )

    call(work)


@app.command()
def predict(
    model: str,
    entities: Annotated[str, typer.Option(help='Join keys as JSON: {"carrier": "UA"}')],
    request: Annotated[str, typer.Option(help="Request fields as JSON")] = "{}",
    as_of: Annotated[datetime | None, typer.Option(help="UTC; default now")] = None,
) -> None:
    """One prediction."""

    async def work(client: Client) -> None:
        show(await client.predict(model, json.loads(entities), json.loads(request), as_of=as_of))

    call(work)


@runs.command("list")
def list_runs(
    where: Annotated[str, typer.Option(help="e.g. metrics.auc>0.7")] = "",
    order_by: Annotated[str, typer.Option(help="e.g. -metrics.auc")] = "",
) -> None:
    """Runs, newest first or by a metric."""

    async def work(client: Client) -> None:
        request = trainer_pb2.ListRunsRequest(parent=client.parent, filter=where, order_by=order_by)
        show_all(
            (await client.trainer.ListRuns(request)).runs,
            ["name", "state", "metrics", "params", "training_set", "started_at"],
        )

    call(work)


@runs.command("show")
def show_run(run: str) -> None:
    """One run."""

    async def work(client: Client) -> None:
        show((await client.trainer.GetRun(trainer_pb2.GetRunRequest(name=client.path("runs", run)))).run)

    call(work)


@runs.command("pipelines")
def pipelines() -> None:
    """Pipeline runs, newest first."""

    async def work(client: Client) -> None:
        answer = await client.trainer.ListPipelineRuns(
            trainer_pb2.ListPipelineRunsRequest(parent=client.parent)
        )
        show_all(
            answer.pipeline_runs,
            ["name", "state", "model_version", "rollout", "cause_alert", "error_message", "created_at"],
        )

    call(work)


@alerts.command("list")
def list_alerts(where: Annotated[str, typer.Option(help="e.g. state=OPEN")] = "") -> None:
    """Alerts, newest first."""

    async def work(client: Client) -> None:
        request = monitor_pb2.ListAlertsRequest(parent=client.parent, filter=where)
        answer = await client.monitor.ListAlerts(request)
        show_all(answer.alerts, ["name", "kind", "state", "model_version", "window_end", "reason"])

    call(work)


@alerts.command("ack")
def acknowledge(alert: str) -> None:
    """Say that somebody looks after it."""

    async def work(client: Client) -> None:
        request = monitor_pb2.AcknowledgeAlertRequest(
            name=client.path("alerts", alert), request_id=request_id()
        )
        show((await client.monitor.AcknowledgeAlert(request)).alert)

    call(work)


@alerts.command("resolve")
def resolve(alert: str, reason: Annotated[str, typer.Option(help="Kept with the alert")]) -> None:
    """Close an alert."""

    async def work(client: Client) -> None:
        request = monitor_pb2.ResolveAlertRequest(
            name=client.path("alerts", alert), reason=reason, request_id=request_id()
        )
        show((await client.monitor.ResolveAlert(request)).alert)

    call(work)


@alerts.command("drift")
def drift(model: str) -> None:
    """The newest closed window of a model against its reference."""

    async def work(client: Client) -> None:
        request = monitor_pb2.GetDriftReportRequest(name=client.path("models", model))
        report = (await client.monitor.GetDriftReport(request)).report
        console.print(
            f"{report.model_version} {report.window_start.ToDatetime()} – {report.window_end.ToDatetime()}: {report.reason}"
        )
        show_all(
            report.features, ["feature", "psi_corrected", "ks", "adjusted_p_value", "mean_shift", "verdict"]
        )

    call(work)


@alerts.command("performance")
def performance(model_version: str) -> None:
    """AUC, log-loss and calibration of a version's labelled predictions."""

    async def work(client: Client) -> None:
        request = monitor_pb2.GetPerformanceRequest(model_version=client.path("models", model_version))
        show((await client.monitor.GetPerformance(request)).performance)

    call(work)


@app.command()
def status() -> None:
    """What the gateway serves and how far the monitor is."""

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
