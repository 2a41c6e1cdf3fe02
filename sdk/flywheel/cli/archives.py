"""Commands that move models: `flywheel models export | import | import-mlflow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flywheel.cli.output import call, console
from flywheel.client import Client
from flywheel.mlflow_import import MlflowImport


def export(model: str, file: Path) -> None:
    """Write a model with its versions, releases, evidence, audit and files to one archive."""

    async def work(client: Client) -> None:
        archive = await client.export_model(model, file)
        console.print(
            f"{len(archive.versions)} versions, {len(archive.releases)} releases and {len(archive.audit)} "
            f"audit entries written to {file}",
            highlight=False,
        )

    call(work)


def import_(
    file: Path,
    model: Annotated[str, typer.Option(help="Name here; default: that of the origin")] = "",
) -> None:
    """Import an archive; exit with status 1 when a part of it could not be used here."""

    async def work(client: Client) -> None:
        done = await client.import_model(file, model=model)
        for origin, here in {**done.versions, **done.releases}.items():
            console.print(f"{origin} -> {here}", highlight=False)
        for name, problems in done.problems.items():
            console.print(f"[red]{name}[/red] {' '.join(problems)}", highlight=False)
        if done.problems:
            raise typer.Exit(1)

    call(work)


def import_mlflow(
    origin: Annotated[str, typer.Argument(help="SQLite file of an MLflow registry, or URL of its server")],
    *,
    feature_set: Annotated[str, typer.Option(help="Feature set that has the models' inputs")],
    artifacts: Annotated[Path | None, typer.Option(help="Folder of `mlflow-artifacts:/`")] = None,
    kind: Annotated[str, typer.Option(help="binary, multiclass, regression or vector")] = "binary",
    output: Annotated[str, typer.Option(help="Output tensor; default: the only one of numbers")] = "",
) -> None:
    """Register the ONNX models of an MLflow registry; exit with status 1 when one is skipped."""

    async def work(client: Client) -> None:
        done = await client.import_mlflow(
            origin, feature_set=feature_set, artifacts=artifacts, kind=kind, output=output
        )
        show_import(done)

    call(work)


def show_import(done: MlflowImport) -> None:
    """Prints what became of each version; exits with status 1 when one was skipped."""
    for theirs, here in done.versions.items():
        console.print(f"{theirs} -> {here}", highlight=False)
    for theirs, here in done.unchanged.items():
        console.print(f"{theirs} -> {here} unchanged", highlight=False)
    for theirs, why in done.skipped.items():
        console.print(f"[red]{theirs} skipped[/red] {escape(why)}", highlight=False)
    if done.skipped:
        raise typer.Exit(1)


def add_commands(models: typer.Typer) -> None:
    """Adds the commands to `flywheel models`."""
    for command in (export, import_, import_mlflow):
        models.command(command.__name__.strip("_").replace("_", "-"))(command)
