"""Commands about where alerts are sent, and about silences."""

from __future__ import annotations

from typing import Annotated

import typer

from flywheel.cli.output import call, console, show, show_all
from flywheel.client import Client
from flywheel.connection import request_id
from flywheel.types import duration
from flywheel_protos.monitor.v1 import sink_pb2

FORMATS = {
    "webhook": sink_pb2.ALERT_SINK_FORMAT_WEBHOOK,
    "alertmanager": sink_pb2.ALERT_SINK_FORMAT_ALERTMANAGER,
}
sinks = typer.Typer(no_args_is_help=True, help="Where changes of alerts are sent by HTTP.")


@sinks.command("set")
def set_sink(
    name: str,
    url: str,
    form: Annotated[str, typer.Option("--format", help="webhook or alertmanager")] = "webhook",
    secret: Annotated[str, typer.Option(envvar="FLYWHEEL_SINK_SECRET", help="Signs what is sent")] = "",
) -> None:
    """Send every change of an alert to a URL."""
    if form not in FORMATS:
        raise typer.BadParameter("the format must be webhook or alertmanager")

    async def work(client: Client) -> None:
        sink = sink_pb2.AlertSink(
            name=client.path("alertSinks", name), url=url, format=FORMATS[form], secret=secret
        )
        request = sink_pb2.SetAlertSinkRequest(sink=sink, request_id=request_id())
        show((await client.monitor.SetAlertSink(request)).sink)

    call(work)


@sinks.command("list")
def list_sinks() -> None:
    """List the sinks, without their secrets."""

    async def work(client: Client) -> None:
        request = sink_pb2.ListAlertSinksRequest(parent=client.parent)
        listed = await client.monitor.ListAlertSinks(request)
        show_all(listed.sinks, ["name", "url", "format", "signed"])

    call(work)


@sinks.command("delete")
def delete_sink(name: str) -> None:
    """Delete a sink with what waits for it."""

    async def work(client: Client) -> None:
        request = sink_pb2.DeleteAlertSinkRequest(
            name=client.path("alertSinks", name), request_id=request_id()
        )
        await client.monitor.DeleteAlertSink(request)
        console.print(f"{request.name} is deleted", highlight=False)

    call(work)


def add_silence(alerts: typer.Typer) -> None:
    """Add `silence` and `silences` to the commands of alerts."""

    @alerts.command("silence")
    def silence(
        model: str,
        for_: Annotated[str, typer.Option("--for", help="e.g. 4h; 0s ends the silence")],
        reason: Annotated[str, typer.Option(help="Stored with the silence")] = "",
        kind: Annotated[str, typer.Option(help="e.g. DATA_DRIFT; default: all kinds")] = "",
    ) -> None:
        """Send nothing about the alerts of a model for a while."""

        async def work(client: Client) -> None:
            request = sink_pb2.SilenceAlertsRequest(
                model=client.path("models", model), kind=kind, reason=reason, request_id=request_id()
            )
            request.duration.FromTimedelta(duration(for_))
            show((await client.monitor.SilenceAlerts(request)).silence)

        call(work)

    @alerts.command("silences")
    def silences() -> None:
        """List the silences."""

        async def work(client: Client) -> None:
            request = sink_pb2.ListAlertSilencesRequest(parent=client.parent)
            listed = await client.monitor.ListAlertSilences(request)
            show_all(listed.silences, ["model", "kind", "until", "reason", "created_by"])

        call(work)
