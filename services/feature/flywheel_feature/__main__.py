"""`flywheel-feature serve | materialize | migrate`."""

from __future__ import annotations

import asyncio

import typer

from flywheel_common.config import load
from flywheel_common.postgres.migrate import migrate as apply_migrations
from flywheel_common.postgres.pool import create_pool
from flywheel_common.process import runtime
from flywheel_common.telemetry.logs import configure_logs
from flywheel_feature.config import FeatureSettings, MaterializeSettings
from flywheel_feature.ports import MIGRATIONS
from flywheel_feature.server import build, build_worker

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def serve() -> None:
    """Run the gRPC service until SIGTERM."""
    runtime.main("feature", FeatureSettings, build)


@app.command()
def materialize() -> None:
    """Run a stream worker (tiles and archive of stream sources) until SIGTERM; any number may run."""
    runtime.main("feature-materialize", MaterializeSettings, build_worker)


@app.command()
def migrate() -> None:
    """Migrate the database to this version's schema; serve does so too."""
    settings = load(FeatureSettings)
    configure_logs("flywheel-feature", settings.log_level)

    async def work() -> int:
        async with create_pool(settings.dsn, application_name="flywheel-feature") as pool:
            return await apply_migrations(pool, MIGRATIONS)

    typer.echo(f"{asyncio.run(work())} migration(s) applied")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
