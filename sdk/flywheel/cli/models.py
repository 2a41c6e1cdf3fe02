"""Commands about models: versions, reports, rollouts, rollback, audit."""

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
            for activity in await watched.poll():
                console.print(f"[bold]{activity.kind:>8}[/bold] {activity.text}", highlight=False)
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
