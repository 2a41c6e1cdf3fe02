"""up, down, status and run: one supervising process per platform, found again through the state file."""

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
from pathlib import Path
from types import FrameType

import psutil

from flywheel_local import ports as port_numbers
from flywheel_local import state as state_file
from flywheel_local.failure import LocalError
from flywheel_local.layout import LOCAL, REPOSITORY, STATE
from flywheel_local.platform import Platform
from flywheel_local.services import SERVICES
from flywheel_local.state import State

_DATA = LOCAL / "platform"
_LOG = LOCAL / "log"
_SUPERVISOR_LOG = _LOG / "supervisor.log"


class Stopped(BaseException):
    """SIGTERM, SIGINT or SIGHUP arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns the first stop signal into Stopped and ignores further ones, so that cleaning up is never cut short."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(message: str) -> None:
    print(message, flush=True)


def serve() -> None:
    """Holds the platform up until told to stop; what ``up`` starts in the background."""
    me = psutil.Process()
    state = State(supervisor=me.pid, supervisor_started=me.create_time())
    state_file.write(STATE, state)
    try:
        with Platform(_DATA, _LOG, port_numbers.configured(), tell) as platform:
            ready = State(me.pid, me.create_time(), True, members(platform), platform.client_environment)
            state_file.write(STATE, ready)
            told: set[str] = set()
            while True:
                for sentence in platform.ended():
                    if sentence not in told:
                        told.add(sentence)
                        tell(sentence)
                time.sleep(1)
    finally:
        STATE.unlink(missing_ok=True)


def members(platform: Platform) -> dict[str, tuple[int, str, str]]:
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
    """Starts the platform in the background and returns when it serves. Does nothing when it already does."""
    state = state_file.read(STATE)
    if state is not None and state.alive():
        if state.ready:
            return state
        raise LocalError("the platform is being started already", "wait for it, or make down")
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
                tell(line)
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
        tell(line)
    raise LocalError("the platform did not start", f"see above, and {_LOG}")


def down(wait_seconds: float = 60.0) -> bool:
    """Stops what ``up`` started; False when nothing ran."""
    state = state_file.read(STATE)
    if state is None or not state.alive():
        STATE.unlink(missing_ok=True)
        return False
    os.kill(state.supervisor, signal.SIGTERM)
    deadline = time.monotonic() + wait_seconds
    while state.alive():
        if time.monotonic() > deadline:
            # Its guardian ends the rest.
            os.kill(state.supervisor, signal.SIGKILL)
        time.sleep(0.1)
    return True


def run(story: Path, scope: str | None) -> int:
    """A platform with empty stores, the story on it, and nothing left; the story's exit status."""
    ports = port_numbers.configured()
    state = state_file.read(STATE)
    if state is not None and state.alive() and not all(map(port_numbers.is_free, ports.values())):
        raise LocalError(
            "a platform is running in the background", "make down first, or use other ports: PORT_BASE=…"
        )
    directory = LOCAL / "run"
    with _alone(directory), Platform(directory / "data", directory / "log", ports, tell) as platform:
        environment = {**os.environ, **platform.client_environment}
        if scope:
            environment["SCOPE"] = scope
        return play(story, environment, platform)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """An empty folder that no other run uses meanwhile."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalError(
                "make run is running already in this checkout", "wait for it, or stop it"
            ) from error
        shutil.rmtree(directory, ignore_errors=True)
        yield


def play(story: Path, environment: Mapping[str, str], platform: Platform) -> int:
    process = subprocess.Popen([sys.executable, str(story)], cwd=REPOSITORY, env=dict(environment))
    told: set[str] = set()
    try:
        while process.poll() is None:
            for sentence in platform.ended():
                if sentence not in told:
                    told.add(sentence)
                    tell(sentence)
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
