"""The state file of a background platform: its supervisor, processes and addresses."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class State:
    """``ready``: everything served. ``members`` maps names to (pid, addresses, log file), ``notes`` those of
    processes that ended to what happened."""

    supervisor: int
    supervisor_started: float
    ready: bool = False
    members: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    client_environment: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def alive(self) -> bool:
        """Whether the supervisor is running; its start time guards against a reused process id."""
        return alive(self.supervisor, self.supervisor_started)


def alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read(path: Path) -> State | None:
    """The state, or None if there is no valid file."""
    try:
        raw = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    raw["members"] = {name: tuple(member) for name, member in raw["members"].items()}
    return State(**raw)


def write(path: Path, state: State) -> None:
    """Replaces the file atomically. Only its owner can read it, because it contains secrets."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(asdict(state), indent=1))
    partial.replace(path)
