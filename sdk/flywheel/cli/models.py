"""Commands for models: versions, reports, rollouts, rollback, audit."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from flywheel.cli import archives, catalog, governance, stages
from flywheel.cli.option_values import parse_metrics, parse_tags, parse_vocabularies
from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, console, show, show_list
from flywheel.cli.rollouts import rollout
from flywheel.cli.variants import variants
from flywheel.cli.version_argument import Version
from flywheel.client import Client
from flywheel.model_watch import ModelWatch
from flywheel.report import alerts_table, versions_table
from flywheel_protos.registry.v1 import registry_pb2

models = typer.Typer(no_args_is_help=True, help="Models, versions, rollouts, rollback, audit.")
models.add_typer(rollout, name="rollout")
stages.add_commands(models)
catalog.add_commands(models)
governance.add_commands(models)
archives.add_commands(models)
models.add_typer(variants, name="variants")


@models.command("list")
def list_models(limit: Limit = DEFAULT_LIMIT) -> None:
    """List models with their production versions."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListModelsRequest(parent=client.parent)
        columns = ["name", "production_version", "production_release", "owner"]
        await show_list(client.registry.ListModels, request, "models", columns, limit)

    call(work)


@models.command("report")
def report(model: str) -> None:
    """Show the live quality of each version, and the alerts."""

    async def work(client: Client) -> None:
        console.print(await versions_table(client, model))
        console.print(await alerts_table(client, model))

    call(work)


@models.command("watch")
def watch(
    model: str, seconds: Annotated[float, typer.Option(help="Seconds between two polls")] = 1.0
) -> None:
    """Print alerts, trainings and rollouts as they happen, until Ctrl-C."""

    async def work(client: Client) -> None:
        watched = ModelWatch(client, model)
        while True:
            for activity in await watched.poll():
                console.print(f"[bold]{activity.kind:>8}[/bold] {activity.text}", highlight=False)
            await asyncio.sleep(seconds)

    try:
        call(work)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@models.command("versions")
def list_versions(model: str, limit: Limit = DEFAULT_LIMIT) -> None:
    """List the versions of a model, newest first."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListModelVersionsRequest(parent=client.path("models", model))
        columns = [
            "name",
            "stage",
            "artifact_state",
            "metrics",
            "training_dataset",
            "cause_alert",
            "registered_at",
        ]
        await show_list(client.registry.ListModelVersions, request, "model_versions", columns, limit)

    call(work)


@models.command("register")
def register(
    file: Annotated[Path, typer.Argument(help="ONNX file")],
    *,
    feature_set: Annotated[str, typer.Option(help="Feature set that has the model's inputs")],
    signature: Annotated[str, typer.Option(help="`auto`: read it from the graph")] = "auto",
    model: Annotated[str, typer.Option(help="Default: the file's name without its suffix")] = "",
    samples: Annotated[
        Path | None, typer.Option(help="Golden rows: .npy of the only tensor, or .npz by tensor name")
    ] = None,
    kind: Annotated[str, typer.Option(help="binary, multiclass, regression or vector")] = "binary",
    output: Annotated[str, typer.Option(help="Output tensor; default: the only one of numbers")] = "",
    class_name: Annotated[list[str] | None, typer.Option(help="Repeat per class, in order")] = None,
    unit: Annotated[str, typer.Option(help="Unit of a regression")] = "",
    size: Annotated[int, typer.Option(help="Elements of a vector")] = 0,
    vocabularies: Annotated[
        Path | None,
        typer.Option(help="JSON file: text feature that the model gets as a number → its values, in order"),
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="`auc=0.8`; repeat for more")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="`key=value`; repeat for more")] = None,
    description: Annotated[str, typer.Option(help="What the version is")] = "",
    training_run: Annotated[str, typer.Option(help="Run that made the file: its id or full name")] = "",
) -> None:
    """Register an ONNX file as a new version; the registry checks it."""
    if signature != "auto":
        raise typer.BadParameter("only `auto` is supported; use Client.register for another signature")

    async def work(client: Client) -> None:
        rows = None
        if samples is not None:
            loaded = await asyncio.to_thread(np.load, samples, allow_pickle=False)
            rows = dict(loaded) if samples.suffix == ".npz" else loaded
        show(
            await client.register(
                model or file.stem,
                file,
                feature_set=feature_set,
                samples=rows,
                kind=kind,
                output=output,
                class_names=class_name or (),
                unit=unit,
                size=size,
                vocabularies={} if vocabularies is None else parse_vocabularies(vocabularies.read_text()),
                metrics=parse_metrics(metric or ()),
                tags=parse_tags(tag or ()),
                description=description,
                training_run=training_run,
            )
        )

    call(work)


@models.command("check")
def check(version: Version) -> None:
    """Repeat the check of a version, e.g. after its feature set was applied."""

    async def work(client: Client) -> None:
        name = await client.resolve_version(version)
        request = registry_pb2.CheckModelVersionRequest(name=name)
        show((await client.registry.CheckModelVersion(request, timeout=120.0)).model_version)

    call(work)


@models.command("history")
def history(
    model: str,
    limit: Limit = DEFAULT_LIMIT,
    at: Annotated[datetime | None, typer.Option(help="Only what served at this time, UTC")] = None,
) -> None:
    """Show which release served when, and why."""

    async def work(client: Client) -> None:
        if at is not None:
            span = await client.served_at(model, at)
            if span is None:
                raise ValueError(f"nothing served at {at.isoformat(sep=' ')} UTC")
            show(span)
            return
        request = registry_pb2.ListServingHistoryRequest(parent=client.path("models", model))
        columns = ["release", "model_version", "from", "until", "reason"]
        await show_list(client.registry.ListServingHistory, request, "spans", columns, limit)

    call(work)


@models.command("audit")
def audit(model: str, limit: Limit = DEFAULT_LIMIT) -> None:
    """Show the audit log of a model, newest first."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListAuditEntriesRequest(parent=client.path("models", model))
        columns = ["at", "actor", "action", "subject", "from_state", "to_state", "reason"]
        await show_list(client.registry.ListAuditEntries, request, "entries", columns, limit)

    call(work)


@models.command("rollouts")
def rollouts(model: str, limit: Limit = DEFAULT_LIMIT) -> None:
    """List the rollouts of a model, newest first."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListRolloutsRequest(parent=client.path("models", model))
        columns = ["name", "state", "challenger_percent", "challenger_release", "reason"]
        await show_list(client.registry.ListRollouts, request, "rollouts", columns, limit)

    call(work)


@models.command("rollback")
def rollback(
    model: str,
    reason: Annotated[str, typer.Option(help="Written to the audit log")],
    to: Annotated[str, typer.Option(help="Release to serve; empty: the one that served before")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for gateways")] = 30.0,
) -> None:
    """Serve a former release again and wait until the gateways apply it.

    Exits with status 1 when a gateway has not reported the change: it may still serve the other release.
    """

    async def work(client: Client) -> None:
        answer = await client.rollback(model, reason, to=to, timeout=timeout)
        seconds = answer.elapsed.ToTimedelta().total_seconds()
        console.print(f"{answer.model.production_release} is to serve, after {seconds:.3f} s")
        if not answer.complete:
            silent = ", ".join(answer.unacknowledged_gateways)
            console.print(
                f"[bold red]NOT COMPLETE[/bold red]: these gateways have not reported the change and may "
                f"serve the former release: {silent}"
            )
            raise typer.Exit(1)

    call(work)
