"""``python -m flywheel_local``: what the Makefile calls."""

from __future__ import annotations

import os
import shlex
import sys

import psutil
import typer
from rich.console import Console
from rich.table import Table

from flywheel_local import kafka_jars, libpython, supervisor
from flywheel_local import state as state_file
from flywheel_local.failure import LocalError
from flywheel_local.layout import LOCAL, REPOSITORY, STATE
from flywheel_local.state import State

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def up() -> None:
    """Start the platform in the background."""
    state = supervisor.up()
    _show(state)
    print("\nmake status shows this again, make down stops everything")


@app.command()
def down() -> None:
    """Stop what up started."""
    print("stopped" if supervisor.down() else "nothing was running")


@app.command()
def status() -> None:
    """Show what runs, where it listens and where it logs; exit status 1 when something does not run."""
    state = state_file.read(STATE)
    if state is None or not state.alive():
        print("the platform is not running (make up starts it)")
        raise typer.Exit(1)
    if not state.ready:
        print("the platform is being started")
        raise typer.Exit(1)
    if not _show(state):
        raise typer.Exit(1)


@app.command()
def env() -> None:
    """Print what a client needs to reach the running platform, as shell exports."""
    state = state_file.read(STATE)
    if state is None or not state.alive() or not state.ready:
        raise LocalError("the platform is not running", "make up starts it")
    for name, value in state.client_environment.items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def run() -> None:
    """Start a platform with empty stores, play examples/flights on it, stop everything."""
    raise typer.Exit(supervisor.run(REPOSITORY / "examples" / "flights" / "main.py", os.environ.get("SCOPE")))


@app.command(hidden=True)
def serve() -> None:
    """Hold the platform up in this process until a signal comes."""
    supervisor.serve()


@app.command()
def fetch() -> None:
    """Fetch what is no Python package: Kafka's jars, libpython where the machine has none."""
    kafka_jars.fetch()
    libpython.fetch()


@app.command()
def lock() -> None:
    """Resolve Kafka's jars again and write kafka.lock."""
    kafka_jars.lock()


def _show(state: State) -> bool:
    table = Table(box=None, pad_edge=False)
    for column in ("", "pid", "MiB", "listens on", "log"):
        table.add_column(column, justify="right" if column in ("pid", "MiB") else "left", overflow="fold")
    everything = True
    total = 0.0
    for name, (pid, where, log) in state.members.items():
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            size = sum(each.memory_full_info().pss for each in family) / 2**20
        except psutil.Error:
            size = 0.0
        running = psutil.pid_exists(pid)
        everything &= running
        total += size
        shown = os.path.relpath(log) if log.startswith(str(LOCAL)) else log
        table.add_row(name, str(pid) if running else "DEAD", f"{size:.0f}", where, shown)
    # Addresses and paths are for copying: never broken, however narrow the terminal.
    Console(soft_wrap=True, width=max(Console().width, 150)).print(table)
    print(f"{total:.0f} MiB in all")
    return everything


def main() -> None:
    try:
        with supervisor.stoppable():
            app(standalone_mode=True)
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except supervisor.Stopped as stop:
        print(f"stopped by {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    main()
