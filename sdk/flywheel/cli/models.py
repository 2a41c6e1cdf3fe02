"""Commands for models: versions, reports, rollouts, rollback, audit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

import typer

from flywheel.cli.output import call, console, show, show_all
from flywheel.client import Client
from flywheel.connection import request_id
from flywheel.model_watch import ModelWatch
from flywheel.report import alerts_table, versions_table
from flywheel_protos.registry.v1 import registry_pb2

models = typer.Typer(no_args_is_help=True, help="Models, versions, rollouts, rollback, audit.")


@models.command("list")
def list_models() -> None:
    """List models with their production versions."""

    async def work(client: Client) -> None:
        answer = await client.registry.ListModels(registry_pb2.ListModelsRequest(parent=client.parent))
        show_all(answer.models, ["name", "production_version", "production_release", "owner"])

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
def list_versions(model: str) -> None:
    """List the versions of a model, newest first."""

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
    """Show which release served when, and why."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListServingHistoryRequest(parent=client.path("models", model))
        show_all(
            (await client.registry.ListServingHistory(request)).spans,
            ["release", "model_version", "from", "until", "reason"],
        )

    call(work)


@models.command("audit")
def audit(model: str) -> None:
    """Show the audit log of a model, newest first."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListAuditEntriesRequest(parent=client.path("models", model))
        answer = await client.registry.ListAuditEntries(request)
        show_all(answer.entries, ["at", "actor", "action", "subject", "from_state", "to_state", "reason"])

    call(work)


@models.command("rollouts")
def rollouts(model: str) -> None:
    """List the rollouts of a model, newest first."""

    async def work(client: Client) -> None:
        request = registry_pb2.ListRolloutsRequest(parent=client.path("models", model))
        answer = await client.registry.ListRollouts(request)
        show_all(answer.rollouts, ["name", "state", "challenger_percent", "challenger_release", "reason"])

    call(work)


def _rollout_command(verb: str) -> Callable[[str, str], None]:
    """A command that calls the RPC `verb` of the registry for a rollout."""

    def command(rollout: str, reason: Annotated[str, typer.Option(help="Written to the audit log")]) -> None:
        async def work(client: Client) -> None:
            request = getattr(registry_pb2, f"{verb}Request")(
                name=rollout, reason=reason, request_id=request_id()
            )
            show((await getattr(client.registry, verb)(request)).rollout)

        call(work)

    return command


for verb, label, text in (
    ("PauseRollout", "pause", "Pause a rollout; the current routing stays."),
    ("ResumeRollout", "resume", "Resume a paused rollout."),
    ("AbortRollout", "abort", "End a rollout; the champion serves all requests."),
    ("SkipRolloutStep", "skip", "Advance a rollout to its next step without waiting for evidence."),
):
    models.command(label, help=text)(_rollout_command(verb))


@models.command("rollback")
def rollback(model: str, reason: Annotated[str, typer.Option(help="Written to the audit log")]) -> None:
    """Serve the previous release again; returns when every live gateway has acknowledged."""

    async def work(client: Client) -> None:
        answer = await client.rollback(model, reason)
        seconds = answer.elapsed.ToTimedelta().total_seconds()
        console.print(f"{answer.model.production_release} serves after {seconds:.3f} s")

    call(work)
