"""Commands that move models: `flywheel models export | import | import-mlflow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flywheel.cli.output import call, console
from flywheel.client import Client


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
    database: Annotated[Path, typer.Argument(help="SQLite file of an MLflow registry")],
    *,
    feature_set: Annotated[str, typer.Option(help="Feature set that has the models' inputs")],
    artifacts: Annotated[Path | None, typer.Option(help="Folder of `mlflow-artifacts:/`")] = None,
    kind: Annotated[str, typer.Option(help="binary, multiclass, regression or vector")] = "binary",
    output: Annotated[str, typer.Option(help="Output tensor; default: the only one of numbers")] = "",
) -> None:
    """Register the ONNX models of an MLflow registry; exit with status 1 when one is skipped."""

    async def work(client: Client) -> None:
        done = await client.import_mlflow(
            database, feature_set=feature_set, artifacts=artifacts, kind=kind, output=output
        )
        for origin, here in done.versions.items():
            console.print(f"{origin} -> {here}", highlight=False)
        for origin, why in done.skipped.items():
            console.print(f"[red]{origin} skipped[/red] {why}", highlight=False)
        if done.skipped:
            raise typer.Exit(1)

    call(work)


def add_commands(models: typer.Typer) -> None:
    """Adds the commands to `flywheel models`."""
    for command in (export, import_, import_mlflow):
        models.command(command.__name__.strip("_").replace("_", "-"))(command)
