"""The commands up, down and run: one supervisor process per platform, found through the state file."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil

from flywheel_local import ports as port_numbers
from flywheel_local import state as state_file
from flywheel_local.failure import LocalError
from flywheel_local.layout import LOCAL, REPOSITORY, STATE
from flywheel_local.platform import Platform
from flywheel_local.restarts import Restarts
from flywheel_local.services import SERVICES
from flywheel_local.state import State

_DATA = LOCAL / "platform"
_LOG = LOCAL / "log"
_SUPERVISOR_LOG = _LOG / "supervisor.log"


def report(message: str) -> None:
    """Prints a progress message."""
    print(message, flush=True)


def serve() -> None:
    """Runs the platform until a stop signal, and starts processes that end again; ``up`` starts this in the
    background."""
    me = psutil.Process()
    state = State(supervisor=me.pid, supervisor_started=me.create_time())
    state_file.write(STATE, state)
    try:
        with Platform(_DATA, _LOG, port_numbers.configured(), report) as platform:
            ready = replace(state, ready=True, client_environment=platform.client_environment)
            restarts, changed = Restarts(platform.restartable, report), True
            while True:
                if changed:
                    known = replace(ready, members=members(platform), notes=restarts.notes())
                    state_file.write(STATE, known)
                time.sleep(1)
                changed = restarts.tick()
    finally:
        STATE.unlink(missing_ok=True)


def members(platform: Platform) -> dict[str, tuple[int, str, str]]:
    """Name → (pid, addresses, log file) of each process, for the state file."""
    found = {}
    for backend in platform.backends:
        if backend.process is not None:
            where = ", ".join(f"{name} 127.0.0.1:{port}" for name, port in backend.ports.items())
            found[backend.name] = (backend.process.pid, where, str(backend.log))
    for service in SERVICES:
        process = platform.processes[service.name]
        grpc_part = f"gRPC 127.0.0.1:{platform.ports[service.port]}, " if service.port else ""
        metrics = f"http://127.0.0.1:{platform.ports[service.metrics_port]}/metrics"
        found[service.name] = (process.pid, grpc_part + metrics, str(process.log))
    return found


def up() -> State:
    """Starts the platform in the background and returns when it serves. Does nothing if it is running."""
    state = state_file.read(STATE)
    if state is not None and state.alive():
        if state.ready:
            return state
        raise LocalError("the platform is already starting", "wait for it, or make down")
    _LOG.mkdir(parents=True, exist_ok=True)
    with _SUPERVISOR_LOG.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flywheel_local", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )
    try:
        shown = 0
        while process.poll() is None:
            lines = _SUPERVISOR_LOG.read_text().splitlines()
            for line in lines[shown:]:
                report(line)
            shown = len(lines)
            state = state_file.read(STATE)
            if state is not None and state.ready and state.supervisor == process.pid:
                return state
            time.sleep(0.2)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    for line in _SUPERVISOR_LOG.read_text().splitlines()[shown:]:
        report(line)
    raise LocalError("the platform did not start", f"read the messages above and the logs in {_LOG}")


def down(wait_seconds: float = 60.0) -> bool:
    """Stops the background platform; False if none was running."""
    state = state_file.read(STATE)
    if state is None or not state.alive():
        STATE.unlink(missing_ok=True)
        return False
    os.kill(state.supervisor, signal.SIGTERM)
    deadline = time.monotonic() + wait_seconds
    while state.alive():
        if time.monotonic() > deadline:
            # The guardian ends the other processes.
            os.kill(state.supervisor, signal.SIGKILL)
        time.sleep(0.1)
    return True


def run(script: Path, scope: str | None) -> int:
    """Runs a script on a new platform with empty stores; returns the exit status of the script."""
    ports = port_numbers.configured()
    state = state_file.read(STATE)
    if state is not None and state.alive() and not all(map(port_numbers.is_free, ports.values())):
        raise LocalError(
            "a platform is running in the background", "make down first, or use other ports: PORT_BASE=…"
        )
    directory = LOCAL / "run"
    with _exclusive(directory), Platform(directory / "data", directory / "log", ports, report) as platform:
        environment = {**os.environ, **platform.client_environment}
        if scope:
            environment["SCOPE"] = scope
        return _run_script(script, environment, platform)


@contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """Empties the folder and locks it against other runs."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalError(
                "make run is already running in this checkout", "wait for it, or stop it"
            ) from error
        shutil.rmtree(directory, ignore_errors=True)
        yield


def _run_script(script: Path, environment: Mapping[str, str], platform: Platform) -> int:
    process = subprocess.Popen([sys.executable, str(script)], cwd=REPOSITORY, env=dict(environment))
    restarts = Restarts(platform.restartable, report)
    try:
        while process.poll() is None:
            restarts.tick()
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return process.returncode
