"""Commands about what the monitor has seen of a model."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from flywheel.cli.explain_drift import explain
from flywheel.cli.output import call, console
from flywheel.cli.version_argument import ModelOrVersion
from flywheel.client import Client
from flywheel.connection import timestamp
from flywheel.monitor_report import read_report, report_page
from flywheel_protos.monitor.v1 import replay_pb2

monitor = typer.Typer(no_args_is_help=True, help="Reports of the monitor.")
monitor.command()(explain)


@monitor.command("report")
def report(
    model: ModelOrVersion,
    out: Annotated[Path, typer.Option(help="File to write")] = Path("report.html"),
    start: Annotated[datetime | None, typer.Option(help="UTC; default: the newest evaluated window")] = None,
    end: Annotated[datetime | None, typer.Option(help="UTC")] = None,
    segment: Annotated[str, typer.Option(help="Only this segment")] = "",
    window: Annotated[
        int | None, typer.Option(min=1, help="Seconds of a window; default: the evaluated windows")
    ] = None,
) -> None:
    """Write one HTML page: distributions against the reference, timelines, alerts, segments, quality."""

    async def work(client: Client) -> None:
        content = await read_report(
            client, model, start=start, end=end, segment=segment, window_seconds=window
        )
        out.write_text(report_page(content), encoding="utf-8")
        console.print(f"{content.report.model_version}: {content.report.reason}", highlight=False)
        console.print(f"written to {out}", highlight=False)

    call(work)


@monitor.command("replay")
def replay(
    model: Annotated[str, typer.Argument(help="A model")],
    start: Annotated[datetime, typer.Option("--from", help="UTC, event time")],
    end: Annotated[datetime, typer.Option("--to", help="UTC, event time")],
) -> None:
    """Count and judge a range again from the topics; status 1 if it differs from what is stored."""

    async def work(client: Client) -> None:
        request = replay_pb2.ReplayWindowsRequest(
            model=client.path("models", model), start_time=timestamp(start), end_time=timestamp(end)
        )
        found = replay_pb2.ReplayWindowsResponse()
        async for found in client.answers(client.monitor.ReplayWindows(request)):
            if not found.finished:
                console.print(f"{found.records:,} of {found.records_total:,} records", highlight=False)
        for one in found.differences:
            window = f"{one.start_time.ToDatetime()} – {one.end_time.ToDatetime()}"
            console.print(f"{one.model_version} {window}: {one.what}", highlight=False)
        if found.HasField("complete_from"):
            since = found.complete_from.ToDatetime()
            console.print(f"the topics are complete from {since} UTC on only", highlight=False)
        compared = f"{found.panes:,} panes and {found.reports:,} reports"
        if found.differences:
            console.print(f"{len(found.differences):,} differences in {compared}", highlight=False)
            raise typer.Exit(1)
        console.print(f"{compared} are bit-identical", highlight=False)

    call(work)
