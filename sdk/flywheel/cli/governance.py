"""Commands for governance: `flywheel models approve | verify-audit | webhook | webhooks | deliveries`."""

from __future__ import annotations

from typing import Annotated

import typer

from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, console, show, show_all, show_list
from flywheel.cli.version_argument import Version
from flywheel.client import Client
from flywheel_protos.registry.v1 import webhook_pb2


def approve(
    version: Version,
    reason: Annotated[str, typer.Option(help="What you have looked at; written to the audit log")],
) -> None:
    """Approve a version of another person for production."""

    async def work(client: Client) -> None:
        show_all(await client.approve(version, reason), ["approver", "approved_at", "reason"])

    call(work)


def verify_audit(models: list[str]) -> None:
    """Verify the audit of models; exit with status 1 when something was changed or removed."""

    async def work(client: Client) -> None:
        faults = [fault for model in models for fault in await client.audit_faults(model)]
        for fault in faults:
            console.print(f"[red]{fault}[/red]", highlight=False)
        if faults:
            raise typer.Exit(1)
        console.print("intact", highlight=False)

    call(work)


def webhook(
    name: str,
    url: Annotated[str, typer.Option(help="Default: delete the webhook")] = "",
    secret: Annotated[str, typer.Option(envvar="FLYWHEEL_WEBHOOK_SECRET", help="16 to 256 characters")] = "",
    model: Annotated[str, typer.Option(help="Default: all models of the project")] = "",
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="STAGE_CHANGED, ROLLOUT_CHANGED or ROLLOUT_ALERT (ended unpromoted, stalled, long paused); "
            "default: all changes; repeat for more"
        ),
    ] = None,
) -> None:
    """Create a webhook, which is told about stage and rollout changes; without --url delete it."""

    async def work(client: Client) -> None:
        if url:
            show(await client.create_webhook(name, url, secret, model=model, events=event or ()))
        else:
            await client.delete_webhook(name)
            console.print(f"deleted webhook {name}", highlight=False)

    call(work)


def webhooks(limit: Limit = DEFAULT_LIMIT) -> None:
    """List the webhooks of the project."""

    async def work(client: Client) -> None:
        request = webhook_pb2.ListWebhooksRequest(parent=client.parent)
        columns = ["name", "url", "model", "events", "created_by"]
        await show_list(client.registry.ListWebhooks, request, "webhooks", columns, limit)

    call(work)


def deliveries(name: str, limit: Limit = DEFAULT_LIMIT) -> None:
    """List what a webhook was told, newest first."""

    async def work(client: Client) -> None:
        request = webhook_pb2.ListWebhookDeliveriesRequest(parent=client.path("webhooks", name))
        columns = ["event_id", "created_at", "ended_at", "attempt_count", "error"]
        await show_list(client.registry.ListWebhookDeliveries, request, "deliveries", columns, limit)

    call(work)


def add_commands(models: typer.Typer) -> None:
    """Adds the commands to `flywheel models`."""
    for command in (approve, verify_audit, webhook, webhooks, deliveries):
        models.command(command.__name__.replace("_", "-"))(command)
