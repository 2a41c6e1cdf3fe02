"""`flywheel-monitor serve | migrate`."""

from __future__ import annotations

import asyncio

import typer

from flywheel_common.config import load
from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.migrate import migrate as apply_migrations
from flywheel_common.postgres.pool import create_pool
from flywheel_common.process.runtime import main as run_service
from flywheel_monitor.config import MonitorSettings
from flywheel_monitor.server import MIGRATIONS, build

app = typer.Typer(
    help="Drift, performance and experiment evidence.", no_args_is_help=True, add_completion=False
)


@app.command()
def serve() -> None:
    """Serve gRPC, consume predictions and outcomes, watch windows, archive the log."""
    run_service("monitor", MonitorSettings, build)


@app.command()
def migrate() -> None:
    """Bring the database schema up to date and exit."""
    settings = load(MonitorSettings)

    async def work() -> int:
        async with create_pool(settings.dsn, application_name="flywheel-monitor-migrate") as pool:
            return await apply_migrations(pool, MIGRATIONS)

    try:
        applied = asyncio.run(work())
    except FlywheelError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(4) from None
    typer.echo(f"{applied} migration(s) applied")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
