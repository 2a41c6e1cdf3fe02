"""The command ``python -m flywheel_local``, which the Makefile calls."""

from __future__ import annotations

import os
import shlex
import sys

import psutil
import typer
from rich.console import Console
from rich.table import Table

from flywheel_local import kafka_classes, kafka_jars, libpython, stopping, supervisor
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
    print("\nmake status shows this table again, make down stops everything")


@app.command()
def down() -> None:
    """Stop the background platform."""
    print("stopped" if supervisor.down() else "nothing was running")


@app.command()
def status() -> None:
    """Show processes, addresses and logs; exit with status 1 if a process is not running."""
    state = state_file.read(STATE)
    if state is None or not state.alive():
        print("the platform is not running (make up starts it)")
        raise typer.Exit(1)
    if not state.ready:
        print("the platform is starting")
        raise typer.Exit(1)
    if not _show(state):
        raise typer.Exit(1)


@app.command()
def env() -> None:
    """Print the environment of clients of the running platform, as shell exports."""
    state = state_file.read(STATE)
    if state is None or not state.alive() or not state.ready:
        raise LocalError("the platform is not running", "make up starts it")
    for name, value in state.client_environment.items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def run() -> None:
    """Run examples/flights on a new platform with empty stores, then stop everything."""
    raise typer.Exit(supervisor.run(REPOSITORY / "examples" / "flights" / "main.py", os.environ.get("SCOPE")))


@app.command(hidden=True)
def serve() -> None:
    """Run the platform in this process until a signal."""
    supervisor.serve()


@app.command()
def fetch() -> None:
    """Download Kafka's jars, and libpython if the machine has none; record the classes that Kafka loads."""
    kafka_jars.fetch()
    kafka_classes.record()
    libpython.fetch()


@app.command()
def lock() -> None:
    """Resolve Kafka's jars and write kafka.lock."""
    kafka_jars.lock()


def _show(state: State) -> bool:
    table = Table(box=None, pad_edge=False)
    for column in ("", "pid", "MiB", "listens on", "log", "ended"):
        table.add_column(column, justify="right" if column in ("pid", "MiB") else "left", overflow="fold")
    all_running = True
    total = 0.0
    for name, (pid, where, log) in state.members.items():
        running, size = False, 0.0
        try:
            process = psutil.Process(pid)
            # The id of a process that ended may belong to another one, which the supervisor did not start.
            if running := process.ppid() == state.supervisor and process.status() != psutil.STATUS_ZOMBIE:
                family = [process, *process.children(recursive=True)]
                size = sum(each.memory_full_info().pss for each in family) / 2**20
        except psutil.Error:
            pass
        all_running &= running
        total += size
        shown = os.path.relpath(log) if log.startswith(str(LOCAL)) else log
        note = state.notes.get(name, "")
        table.add_row(name, str(pid) if running else "DEAD", f"{size:.0f}", where, shown, note)
    # Addresses and paths can be copied: lines do not break, however narrow the terminal is.
    Console(soft_wrap=True, width=max(Console().width, 150)).print(table)
    print(f"{total:.0f} MiB in total")
    return all_running


def main() -> None:
    try:
        with stopping.stoppable():
            app(standalone_mode=True)
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except stopping.Stopped as stop:
        print(f"stopped by {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    main()
