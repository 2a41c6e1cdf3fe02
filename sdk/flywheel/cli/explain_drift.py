"""The command `flywheel monitor explain MODEL`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flywheel.cli.output import call, console, show, state
from flywheel.cli.version_argument import ModelOrVersion
from flywheel.client import Client
from flywheel.connection import timestamp
from flywheel.monitor_report.explanation import EQUAL_IMPORTANCE, HEADER, explanation_rows
from flywheel_protos.monitor.v1 import explanation_pb2 as pb


def explain(
    model: ModelOrVersion,
    start: Annotated[datetime | None, typer.Option(help="UTC; default: the newest evaluated window")] = None,
    end: Annotated[datetime | None, typer.Option(help="UTC")] = None,
    segment: Annotated[str, typer.Option(help="Only this segment")] = "",
) -> None:
    """Show why a window drifted: features by importance × drift, with their bins and segments."""

    async def work(client: Client) -> None:
        request = pb.ExplainDriftRequest(
            name=await client.resolve_served(model),
            start_time=timestamp(start) if start else None,
            end_time=timestamp(end) if end else None,
            segment=segment,
        )
        found = await client.monitor.ExplainDrift(request)
        if state["json"]:
            show(found)
            return
        window = f"{found.window_start.ToDatetime()} – {found.window_end.ToDatetime()} UTC"
        console.print(f"{found.model_version} {window}, {found.predictions:,} predictions", highlight=False)
        if not found.has_importance:
            console.print(EQUAL_IMPORTANCE, highlight=False)
        table = Table(*HEADER)
        for row in explanation_rows(found):
            table.add_row(*map(escape, row))
        console.print(table)

    call(work)
