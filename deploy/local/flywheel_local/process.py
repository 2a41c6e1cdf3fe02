"""A supervised child process: with its own session and log file, stopped with all its descendants."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from flywheel_local import guardian
from flywheel_local.failure import LocalError
from flywheel_local.stopping import undisturbed

# The variables that a child inherits. Other settings of the shell must not change how a server behaves.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER")
_INHERITED_SUFFIXES = ("_PROXY", "_proxy", "_CERT_FILE", "_CERT_DIR", "_CA_BUNDLE")


class _Guardian:
    """The guardian process (guardian.py), started with the first child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._pipe: IO[str] | None = None

    def send(self, line: str) -> None:
        with self._lock:
            if self._pipe is None or self._owner != os.getpid():
                started = subprocess.Popen(
                    [sys.executable, "-I", guardian.__file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                    cwd="/",
                )
                self._pipe, self._owner = started.stdin, os.getpid()
                atexit.register(self._close, started)
            assert self._pipe is not None
            self._pipe.write(line + "\n")
            self._pipe.flush()

    def _close(self, started: subprocess.Popen[str]) -> None:
        if self._owner == os.getpid() and started.stdin is not None:
            started.stdin.close()
            started.wait()


_guardian = _Guardian()


class Process:
    """A child process. ``stop`` and ``kill`` end all its descendants, also those in other sessions."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        user: int | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_seconds: float = 10.0,
        stdin_text: str | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self.command = [str(part) for part in command]
        self._stop_signal = stop_signal
        self._grace_seconds = grace_seconds
        self._mark = uuid.uuid4().hex
        log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {
            k: v for k, v in os.environ.items() if k in _INHERITED or k.endswith(_INHERITED_SUFFIXES)
        }
        with undisturbed(), log.open("ab") as sink:
            try:
                self._popen = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL if stdin_text is None else subprocess.PIPE,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env={**inherited, **(environment or {}), guardian.MARK: self._mark},
                    cwd=directory,
                    start_new_session=True,
                    user=user,
                    group=user,
                    extra_groups=None if user is None else [],
                )
            except OSError as error:
                raise LocalError(
                    f"{name} cannot be started: {error}", "run make setup to install what is missing"
                ) from error
            self._started = guardian.start_of(self.pid)
            _guardian.send(f"+{self.pid} {self._started} {self._mark}")
        if stdin_text is not None and self._popen.stdin is not None:
            self._popen.stdin.write(stdin_text.encode())
            self._popen.stdin.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -n if signal n ended it."""
        # An exception inside poll may keep its lock, after which the end is never noticed.
        with undisturbed():
            return self._popen.poll()

    @property
    def running(self) -> bool:
        return self.exit_code is None

    def descendants(self) -> set[int]:
        """The process and its descendants that are alive."""
        return guardian.family({self.pid: self._started}) | guardian.marked({self._mark})

    def signal(self, number: int) -> None:
        """Sends a signal to the process, not to its descendants."""
        with undisturbed():
            if self.running:
                self._popen.send_signal(number)

    def kill(self) -> None:
        """Sends SIGKILL to the process and all its descendants, as in a power failure."""
        with undisturbed():
            self._end_all()

    def stop(self, grace_seconds: float | None = None) -> None:
        """Sends the stop signal, waits for ``grace_seconds``, then kills what is left."""
        self.signal(self._stop_signal)
        deadline = time.monotonic() + (self._grace_seconds if grace_seconds is None else grace_seconds)
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)
        with undisturbed():
            self._end_all()

    def _end_all(self) -> None:
        deadline = time.monotonic() + 10.0
        # Collected before the parent dies: PostgreSQL's children leave its group and hide their environment.
        known = self.descendants()
        guardian.send(known, signal.SIGKILL)
        while (alive := self.descendants()) and time.monotonic() < deadline:
            guardian.send(alive, signal.SIGKILL)
            self._popen.poll()
            time.sleep(0.02)
        self._popen.wait()
        _guardian.send(f"-{self.pid}")
