"""The `flywheel` command: what a data scientist and an on-call person do, one call each.

Every answer is a table for people, or with `--json` the protobuf message as JSON for programs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from flywheel.client import Client, request_id
from flywheel.definitions import compile_definitions, load_module
from flywheel.errors import FlywheelError, JobFailedError
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

console, errors = Console(), Console(stderr=True)
state: dict[str, Any] = {"project": "default", "json": False}


@app.callback()
def options(
    project: Annotated[
        str, typer.Option(envvar="FLYWHEEL_PROJECT", help="Project of short names")
    ] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print messages as JSON")] = False,
) -> None:
    state.update(project=project, json=as_json)


def call(work: Callable[[Client], Awaitable[None]]) -> None:
    """Runs one command against the platform; a service's error becomes one sentence and exit code 1."""

    async def run() -> None:
        async with Client(state["project"]) as client:
            await work(client)

    try:
        asyncio.run(run())
    except FlywheelError as error:
        errors.print(f"[red]{error.reason}[/red] {error.message}", highlight=False)
        raise typer.Exit(1) from error
    except (JobFailedError, FileNotFoundError, ValueError) as error:
        errors.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(1) from error


def show(message: Message, title: str = "") -> None:
    """One message, its set fields as rows."""
    if state["json"]:
        console.print_json(MessageToJson(message, preserving_proto_field_name=True))
        return
    table = Table(show_header=False, title=title or None)
    for field, _ in message.ListFields():
        table.add_row(field.name, _text(message, field.name))
    console.print(table)


def show_all(items: Any, columns: list[str]) -> None:
    """Messages as rows with the named fields."""
    if state["json"]:
        for item in items:
            console.print_json(MessageToJson(item, preserving_proto_field_name=True))
        return
    table = Table(*columns)
    for item in items:
        table.add_row(*[_text(item, column) for column in columns])
    console.print(table)


def _text(message: Message, name: str) -> str:
    value, field = getattr(message, name), message.DESCRIPTOR.fields_by_name[name]
    if field.message_type and field.message_type.full_name == "google.protobuf.Timestamp":
        return f"{value.ToDatetime():%Y-%m-%d %H:%M:%S}" if message.HasField(name) else ""
    if field.enum_type and isinstance(value, int):
        text = field.enum_type.values_by_number[value].name
        prefix = "".join("_" + c if c.isupper() else c for c in field.enum_type.name).upper().strip("_") + "_"
        return text.removeprefix(prefix)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Message):
        return MessageToJson(value, preserving_proto_field_name=True)
    if not isinstance(value, str | int | bytes):
        return "\n".join(
            f"{key}: {value[key]}" if hasattr(value, "items") else str(key).strip() for key in value
        )
    return str(value)


@app.command()
def plan(file: str) -> None:
    """Compare the definitions in FILE with what is applied; change nothing."""
    call(lambda client: _apply(client, file, plan=True))


@app.command()
def apply(file: str, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False) -> None:
    """Show the plan for the definitions in FILE, then apply it."""
    call(lambda client: _apply(client, file, plan=True))
    if yes or typer.confirm("Apply?"):
        call(lambda client: _apply(client, file, plan=False))


async def _apply(client: Client, file: str, *, plan: bool) -> None:
    definitions = compile_definitions(vars(load_module(file)).values(), client.project)
    answer = await client.apply(definitions, plan=plan)
    for violation in answer.violations:
        errors.print(f"[red]{violation.name}[/red] {violation.field}: {violation.message}", highlight=False)
    if answer.violations:
        raise typer.Exit(1)
    show_all(answer.changes, ["action", "name", "differences", "readers"])


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
