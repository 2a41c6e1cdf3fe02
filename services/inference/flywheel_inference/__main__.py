"""The command `flywheel-inference`."""

from __future__ import annotations

from typing import Annotated

import typer

from flywheel_common.config import load
from flywheel_common.process.freed_memory import keep_freed_memory
from flywheel_common.process.runtime import main as run_process
from flywheel_inference.config import InferenceSettings
from flywheel_inference.server import build

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The inference gateway of Flywheel.")


@app.callback()
def _commands() -> None:
    """Makes `serve` a subcommand even while it is the only one."""


@app.command()
def serve(
    listen: Annotated[str | None, typer.Option(help="host:port of the gRPC server")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="host:port of /metrics")] = None,
) -> None:
    """Serve predictions until SIGTERM."""
    keep_freed_memory()
    run_process("inference", load(InferenceSettings, listen=listen, metrics_listen=metrics_listen), build)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
