"""Commands about what the monitor has seen of a model."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from flywheel.cli.output import call, console
from flywheel.client import Client
from flywheel.monitor_report import read_report, report_page

monitor = typer.Typer(no_args_is_help=True, help="Reports of the monitor.")


@monitor.command("report")
def report(
    model: Annotated[str, typer.Argument(help="A model, or a version of one: late/versions/3")],
    out: Annotated[Path, typer.Option(help="File to write")] = Path("report.html"),
    start: Annotated[datetime | None, typer.Option(help="UTC; default: the newest evaluated window")] = None,
    end: Annotated[datetime | None, typer.Option(help="UTC")] = None,
    segment: Annotated[str, typer.Option(help="Only this segment")] = "",
) -> None:
    """Write one HTML page: distributions against the reference, timelines, alerts, segments, quality."""

    async def work(client: Client) -> None:
        content = await read_report(client, model, start=start, end=end, segment=segment)
        out.write_text(report_page(content), encoding="utf-8")
        console.print(f"{content.report.model_version}: {content.report.reason}", highlight=False)
        console.print(f"written to {out}", highlight=False)

    call(work)
