"""The base class of backends: ports, folders, start, readiness, kill, restart, stop."""

from __future__ import annotations

import secrets
import shutil
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from flywheel_local import ports as port_numbers
from flywheel_local.failure import LocalError
from flywheel_local.process import Process
from flywheel_local.stopping import undisturbed


class Backend(ABC):
    """A real server on loopback. Data, log and secrets are stored in the given folders."""

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]]
    start_seconds: ClassVar[float] = 60.0

    def __init__(self, data: Path, log: Path, ports: Mapping[str, int]) -> None:
        self.data = data / self.name
        self.log = log / f"{self.name}.log"
        self.ports = {name: ports[name] for name in self.port_names}
        self.process: Process | None = None
        self.started_in_seconds = 0.0
        self._cancelled = False
        self._was_ready = False

    @abstractmethod
    def spawn(self) -> Process:
        """Prepares the data folder if it is new, and starts the server."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether the server answers a request; False or OSError while it does not."""

    def cancel(self) -> None:
        """Makes a start in another thread fail soon."""
        self._cancelled = True

    def begin(self) -> None:
        """Starts the server without waiting for it."""
        self._check_not_cancelled()
        for name, port in self.ports.items():
            port_numbers.require_free(name, port)
        self.data.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self._was_ready = False
        self.process = self.spawn()

    def wait_ready(self) -> None:
        """Waits until ``ready``. Raises LocalError with the end of the log if the server ends or does not
        answer."""
        assert self.process is not None, "begin() first"
        deadline = self._began + self.start_seconds
        while True:
            self._check_not_cancelled()
            try:
                if self.ready():
                    break
            except OSError:
                pass
            if not self.process.running:
                raise LocalError(
                    f"{self.name} ended while starting (exit status {self.process.exit_code})",
                    self.remedy(),
                    log=self.log,
                )
            if time.monotonic() > deadline:
                raise LocalError(
                    f"{self.name} did not answer within {self.start_seconds:.0f} s",
                    self.remedy(),
                    log=self.log,
                )
            time.sleep(0.05)
        self._was_ready = True
        self.started_in_seconds = time.monotonic() - self._began

    def start(self) -> None:
        self.begin()
        self.wait_ready()

    def kill(self) -> None:
        """Kills the server and its descendants with SIGKILL; ``restart`` starts it on the same data and
        ports."""
        if self.process is not None:
            self.process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def start_again(self) -> None:
        """Starts a server that ended on the same data and ports. Raises LocalError."""
        with undisturbed():
            self.kill()
            self.begin()
        self.wait_ready()

    def stop(self) -> None:
        """Stops the server; waits for a clean stop only if it was ready."""
        if self.process is not None:
            self.process.stop(None if self._was_ready else 1.0)
            self.process = None

    def remedy(self) -> str:
        """What the user can do when the server does not start."""
        return f"read the log; if its data is broken, stop the platform and remove {self.data}"

    def _check_not_cancelled(self) -> None:
        if self._cancelled:
            raise LocalError(f"the start of {self.name} was cancelled", "start again")

    def secret(self, label: str) -> str:
        """A random password, created once per data folder, which only its owner can read."""
        file = self.data.parent / "secrets" / f"{self.name}-{label}"
        if not file.exists():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
            file.write_text(secrets.token_hex(16))
        return file.read_text()


def answers_http(url: str, *, header: tuple[str, str] | None = None, any_status: bool = False) -> bool:
    """Whether a GET returns status 200, or with ``any_status`` any status."""
    request = urllib.request.Request(url, headers=dict([header] if header else []))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=2) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return any_status


def require_tool(path: Path, what: str) -> Path:
    if not path.exists():
        raise LocalError(f"{what} is not installed ({path} is missing)", "run make setup")
    return path


def fresh_directory(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
