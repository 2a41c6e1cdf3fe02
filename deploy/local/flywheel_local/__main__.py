"""``python -m flywheel_local``: what the Makefile calls."""

from __future__ import annotations

import sys

import typer

from flywheel_local import kafka_jars, libpython
from flywheel_local.failure import LocalError

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def fetch() -> None:
    """Fetch what is no Python package: Kafka's jars, libpython where the machine has none."""
    kafka_jars.fetch()
    libpython.fetch()


@app.command()
def lock() -> None:
    """Resolve Kafka's jars again and write kafka.lock."""
    kafka_jars.lock()


def main() -> None:
    try:
        app(standalone_mode=True)
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
