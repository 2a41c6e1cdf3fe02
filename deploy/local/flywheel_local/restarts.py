"""Starts processes of the platform again after they ended, with backoff, a few times in a row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flywheel_local.failure import LocalError
from flywheel_local.process import Process

MAX_RESTARTS = 5
"""Restarts in a row after which a process that ends again stays down."""
FIRST_DELAY_SECONDS = 1.0
"""Pause before the first restart; each further one in a row doubles it."""
HEALTHY_SECONDS = 60.0
"""A process that ran this long starts a new row."""


class Restartable(Protocol):
    """A server or service of the platform."""

    @property
    def name(self) -> str: ...

    @property
    def process(self) -> Process | None:
        """The current process, also when it has ended; None before the first start."""
        ...

    def start_again(self) -> None:
        """Ends what is left of the process and starts a new one. Raises LocalError."""
        ...


@dataclass
class _Row:
    """The restarts of one process."""

    count: int = 0
    """In a row."""
    total: int = 0
    started: float = 0.0
    due: float | None = None
    """When to start it again; None: it runs, or its end was not noticed yet."""
    reason: str = ""
    """How it ended last."""
    given_up: bool = False


class Restarts:
    """Watches the processes: call `tick` every second."""

    def __init__(
        self,
        processes: Iterable[Restartable],
        report: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._now = now
        self._rows = [(each, _Row(started=now())) for each in processes]

    def tick(self) -> bool:
        """Notices ends, and starts what is due; whether anything changed."""
        changed = [self._tick(each, row) for each, row in self._rows]
        return any(changed)

    def notes(self) -> dict[str, str]:
        """Name → what happened, for each process that ended at least once."""
        return {each.name: _note(row) for each, row in self._rows if row.reason}

    def _tick(self, each: Restartable, row: _Row) -> bool:
        process = each.process
        if row.given_up or process is None or process.running:
            return False
        if row.due is None:
            self._ended(each.name, process, row)
            return True
        if self._now() < row.due:
            return False
        row.due = None
        row.total += 1
        row.started = self._now()
        try:
            each.start_again()
        except LocalError as error:
            self._report(f"{each.name} cannot be started again: {error}")
        return True

    def _ended(self, name: str, process: Process, row: _Row) -> None:
        if self._now() - row.started >= HEALTHY_SECONDS:
            row.count = 0
        row.reason = f"exit status {process.exit_code}{_last_line(process.log)}"
        row.given_up = row.count >= MAX_RESTARTS
        if row.given_up:
            what = f"ended again after {row.count} restarts in a row and stays down"
        else:
            delay = FIRST_DELAY_SECONDS * 2.0**row.count
            row.count += 1
            row.due = self._now() + delay
            what = f"ended; restart {row.count} of {MAX_RESTARTS} follows in {delay:.0f} s"
        self._report(f"{name} {what} ({row.reason}, log: {process.log})")


def _note(row: _Row) -> str:
    if row.given_up:
        return f"given up after {row.count} restarts in a row: {row.reason}"
    if row.due is not None:
        return f"ended ({row.reason}), is started again"
    return f"restarted {row.total}x, last after {row.reason}"


def _last_line(log: Path) -> str:
    """The end of a log as the explanation of an exit, with a colon before it; empty without a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last[:200]}" if last else ""
