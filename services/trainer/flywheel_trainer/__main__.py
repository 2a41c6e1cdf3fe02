"""`flywheel-trainer serve | migrate`."""

from __future__ import annotations

import asyncio

import typer

from flywheel_common.config import load
from flywheel_common.process.runtime import main as run_process
from flywheel_trainer.config import TrainerSettings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Training runs, jobs and pipelines.")


@app.command()
def serve() -> None:
    """Serve the API, supervise jobs, run pipelines, and retrain models after drift."""
    from flywheel_trainer.server import build

    run_process("trainer", TrainerSettings, build)


@app.command()
def migrate() -> None:
    """Apply missing migrations to the database and exit."""
    from flywheel_trainer.server import migrate_database

    applied = asyncio.run(migrate_database(load(TrainerSettings)))
    typer.echo(f"{applied} migration(s) applied")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
