"""Commands of `flywheel runs` for search, comparison, curves, export, import and notes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from flywheel.cli.archives import show_import
from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, console, errors, show, show_list, state
from flywheel.client import Client
from flywheel.tracking.comparison import compare
from flywheel.tracking.curves import Curve, Series, svg_plot, terminal_plot
from flywheel.tracking.export import export_parquet, export_tensorboard
from flywheel.tracking.image import write_png
from flywheel.tracking.mlflow_import.importing import import_runs, open_source
from flywheel.tracking.spool import default_root
from flywheel.tracking.syncing import sync_spools
from flywheel.types import duration
from flywheel_common.system_metrics import SYSTEM
from flywheel_protos.trainer.v1 import trainer_pb2

COLUMNS = ["name", "display_name", "state", "params", "metrics", "started_at"]


class Format(StrEnum):
    PARQUET = "parquet"
    TENSORBOARD = "tensorboard"


class Mode(StrEnum):
    MAX = "max"
    MIN = "min"


class Of(StrEnum):
    LAST = "last"
    MIN = "min"
    MAX = "max"


def search(
    where: Annotated[str, typer.Argument(help="e.g. params.lr<0.1 AND (max.auc>0.7 OR tags.team=a)")] = "",
    order_by: Annotated[str, typer.Option(help="e.g. -max.auc, min.loss, started_at")] = "",
    deleted: Annotated[bool, typer.Option("--deleted", help="Show deleted runs too")] = False,
    limit: Limit = DEFAULT_LIMIT,
) -> None:
    """Find runs by params, metrics, tags and times with AND, OR, NOT and parentheses."""

    async def work(client: Client) -> None:
        request = trainer_pb2.ListRunsRequest(
            parent=client.parent, filter=where, order_by=order_by, show_deleted=deleted
        )
        await show_list(client.trainer.ListRuns, request, "runs", COLUMNS, limit)

    call(work)


def best(
    experiment: str,
    metric: str,
    mode: Annotated[Mode, typer.Option(help="Largest or smallest")] = Mode.MAX,
    of: Annotated[Of, typer.Option(help="Which value of the metric")] = Of.LAST,
) -> None:
    """Show the best run of an experiment."""

    async def work(client: Client) -> None:
        show(await client.best_run(experiment, metric, mode=mode.value, of=of.value))

    call(work)


def compare_runs(
    names: Annotated[list[str], typer.Argument(help="Runs")],
    everything: Annotated[bool, typer.Option("--all", help="Also what is equal")] = False,
) -> None:
    """Show what differs between runs."""

    async def work(client: Client) -> None:
        found = [await client.get_run(name) for name in names]
        rows = compare(found)
        if state["json"]:
            console.print_json(data={row.field: list(row.values) for row in rows})
            return
        table = Table()
        for column in ("field", *(run.name.rpartition("/")[2] for run in found)):
            table.add_column(column, overflow="fold")
        for row in rows:
            if row.differs or everything:
                table.add_row(row.field, *row.values, style="bold" if row.differs and everything else "")
        console.print(table)

    call(work)


def plot(
    names: Annotated[list[str], typer.Argument(help="Runs")],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", help="Repeat per metric; default: all but system/*")
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Write an SVG file")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a PNG file; needs flywheel[plot]")] = None,
    width: Annotated[int, typer.Option(min=10, max=400, help="Columns in the terminal")] = 80,
    height: Annotated[int, typer.Option(min=4, max=200, help="Rows in the terminal")] = 20,
) -> None:
    """Draw curves of metrics, in the terminal or as a file."""

    async def work(client: Client) -> None:
        series: list[Series] = []
        for name in names:
            run = await client.get_run(name)
            label = run.display_name or run.name.rpartition("/")[2]
            curves: list[Curve] = await client.run_curves(name, metric or ())
            series += [
                Series(f"{label} {curve.key}", curve)
                for curve in curves
                if metric or not curve.key.startswith(SYSTEM)
            ]
        if not series:
            raise ValueError("the runs have no points of these metrics")
        title = ", ".join(metric or ())
        if svg is not None:
            await asyncio.to_thread(svg.write_text, svg_plot(series, title))
        if png is not None:
            await asyncio.to_thread(write_png, png, series, title)
        for path in (svg, png):
            if path is not None:
                console.print(f"wrote {path}", highlight=False)
        if svg or png:
            return
        drawing = Text()
        for piece, color in terminal_plot(series, width, height):
            drawing.append(piece, color)
        console.print(drawing, no_wrap=True, overflow="crop", crop=False)

    call(work)


def export(
    to: Annotated[Path, typer.Argument(help="Folder")],
    where: Annotated[str, typer.Option(help="Conditions, as of `search`")] = "",
    kind: Annotated[Format, typer.Option("--format", help="parquet or tensorboard")] = Format.PARQUET,
    limit: Limit = DEFAULT_LIMIT,
) -> None:
    """Write runs and their points to files."""

    async def work(client: Client) -> None:
        found = await client.search_runs(where, limit=limit)
        write = export_parquet if kind is Format.PARQUET else export_tensorboard
        for path in await write(client, found, to):
            console.print(str(path), highlight=False)

    call(work)


def edit(
    run: str,
    name: Annotated[str | None, typer.Option(help="Name that lists show")] = None,
    notes: Annotated[str | None, typer.Option(help="Markdown")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; repeat")] = None,
    remove_tag: Annotated[list[str] | None, typer.Option(help="KEY; repeat")] = None,
) -> None:
    """Change the name, notes and tags of a run."""
    tags = {}
    for one in tag or ():
        key, separator, value = one.partition("=")
        if not separator:
            raise typer.BadParameter(f"{one!r} is not KEY=VALUE", param_hint="--tag")
        tags[key] = value

    async def work(client: Client) -> None:
        show(await client.edit_run(run, name=name, notes=notes, tags=tags, remove_tags=remove_tag or ()))

    call(work)


def delete(run: str) -> None:
    """Hide a run until it is restored."""

    async def work(client: Client) -> None:
        await client.delete_run(run)
        console.print(f"deleted {run}; undo with `flywheel runs restore {run}`", highlight=False)

    call(work)


def restore(run: str) -> None:
    """Show a deleted run again."""

    async def work(client: Client) -> None:
        show(await client.restore_run(run))

    call(work)


def purge(
    older_than: Annotated[str, typer.Option(help="How long they have been deleted, such as 30d or 12h")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing")] = False,
) -> None:
    """Remove deleted runs for good, with their points and files; runs of jobs stay."""
    time = duration(older_than)

    async def work(client: Client) -> None:
        purged = await client.purge_runs(time, dry_run=dry_run)
        for name in purged.runs:
            console.print(name, highlight=False)
        verb = "would be removed" if dry_run else "removed"
        console.print(f"{len(purged.runs)} runs and {purged.artifact_bytes} bytes {verb}", highlight=False)

    call(work)


def download(run: str, artifact: str, to: Annotated[Path, typer.Argument(help="File")]) -> None:
    """Write an artifact of a run to a file."""

    async def work(client: Client) -> None:
        console.print(str(await client.download_run_artifact(run, artifact, to)), highlight=False)

    call(work)


def sync(
    folder: Annotated[
        Path | None, typer.Argument(help="Default: FLYWHEEL_SPOOL, or the cache folder")
    ] = None,
    address: Annotated[str, typer.Option(help="host:port of the trainer; default: that of each run")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds per run")] = 60.0,
) -> None:
    """Send what processes left in the spool because the trainer was away, or because they were killed."""
    root = folder or default_root()
    found = failed = False
    for one in sync_spools(root, timeout, address):
        found, failed = True, failed or not one.sent
        console.print(f"{one.run} {'sent' if one.sent else 'NOT SENT'}", highlight=False)
        for problem in one.problems:
            errors.print(f"  {problem}", highlight=False)
    if not found:
        console.print(f"nothing waits in {root}", highlight=False)
    if failed:
        raise typer.Exit(1)


def import_mlflow(
    source: Annotated[
        str, typer.Argument(help="Tracking folder (mlruns), SQLite file (mlflow.db) or URL of a server")
    ],
    *,
    include_running: Annotated[
        bool, typer.Option("--include-running", help="Import RUNNING runs too, as CANCELLED")
    ] = False,
    feature_set: Annotated[
        str, typer.Option(help="Import the registered ONNX models too; this set has their inputs")
    ] = "",
    kind: Annotated[str, typer.Option(help="Of models: binary, multiclass, regression or vector")] = "binary",
    output: Annotated[str, typer.Option(help="Of models: the output tensor")] = "",
) -> None:
    """Import the runs of MLflow with params, metrics, tags and artifacts; repeat it as often as you like."""

    async def work(client: Client) -> None:
        opened = open_source(source)
        counts = {"imported": 0, "unchanged": 0, "left out": 0}
        runs: dict[str, str] = {}
        try:
            async for one in import_runs(client, opened, include_running=include_running):
                counts["left out" if not one.run else "imported" if one.new else "unchanged"] += 1
                if one.run:
                    runs[one.uuid] = one.run
                for problem in one.problems:
                    errors.print(f"{one.uuid}: {problem}", highlight=False)
        finally:
            opened.close()
        console.print(", ".join(f"{count} {name}" for name, count in counts.items()), highlight=False)
        if feature_set:
            done = await client.import_mlflow(
                source, feature_set=feature_set, training_runs=runs, kind=kind, output=output
            )
            show_import(done)

    call(work)


def add_commands(runs: typer.Typer) -> None:
    """Add the commands to `flywheel runs`."""
    commands: dict[str, Callable[..., None]] = {
        "search": search,
        "best": best,
        "compare": compare_runs,
        "plot": plot,
        "export": export,
        "edit": edit,
        "delete": delete,
        "restore": restore,
        "purge": purge,
        "download": download,
        "sync": sync,
        "import-mlflow": import_mlflow,
    }
    for name, command in commands.items():
        runs.command(name)(command)
