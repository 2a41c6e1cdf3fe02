"""Command line of the registry: `flywheel-registry serve | migrate | verify-audit`."""

from __future__ import annotations

import asyncio
import ctypes
from typing import Annotated

import typer

from flywheel_common.config import load
from flywheel_common.postgres.migrate import migrate as apply_migrations
from flywheel_common.postgres.pool import create_pool
from flywheel_common.process import runtime
from flywheel_common.telemetry.logs import configure_logs
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.config import RegistrySettings
from flywheel_registry.server import MIGRATIONS, build
from flywheel_registry.store.kafka.sent_heads import sent_heads
from flywheel_registry.store.postgres.store import PostgresStore, registry_identity

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""From malloc.h."""
MAPPED_BYTES = 512 * 1024

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def serve() -> None:
    """Run the service until SIGTERM."""
    _return_large_buffers()
    runtime.main("registry", RegistrySettings, build)


@app.command()
def migrate() -> None:
    """Apply the missing database migrations (serve does this too)."""
    settings = load(RegistrySettings)
    configure_logs("flywheel-registry", settings.log_level)

    async def work() -> int:
        async with create_pool(settings.dsn, application_name="flywheel-registry") as pool:
            return await apply_migrations(pool, MIGRATIONS)

    typer.echo(f"{asyncio.run(work())} migration(s) applied")


@app.command("verify-audit")
def verify_audit(
    events: Annotated[
        bool, typer.Option(help="Compare with the heads that went out with events, read from Kafka")
    ] = True,
) -> None:
    """Verify audit and evidence of every model; exit with status 1 when something was changed or removed."""
    settings = load(RegistrySettings)
    configure_logs("flywheel-registry", settings.log_level)

    async def work() -> list[str]:
        async with create_pool(settings.dsn, application_name="flywheel-registry") as pool:
            identity = await registry_identity(pool)
            sent = await sent_heads(settings.kafka_bootstrap, identity) if events else {}
            return await PostgresStore(pool, to_event).broken_audits(sent)

    broken = asyncio.run(work())
    for sentence in broken:
        typer.echo(sentence, err=True)
    if broken:
        raise typer.Exit(1)
    typer.echo("all audit chains are intact")


def main() -> None:
    """Entry point of the console script."""
    app()


def _return_large_buffers() -> None:
    """Make glibc map each chunk and part of an upload, so that freed memory returns to the system.

    glibc raises this threshold to the largest size freed (up to 32 MiB), and then keeps holes in its heap. It
    also gives each thread a heap of its own, which took 11 MiB more with 32 uploads: one is enough here.
    """
    allocator = ctypes.CDLL(None)
    # Other C libraries have no such option.
    if hasattr(allocator, "mallopt"):
        allocator.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        allocator.mallopt(M_ARENA_MAX, 1)


if __name__ == "__main__":
    main()
