"""CPU time and memory of processes, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree_seconds(pid: int) -> float:
    """User and system time of a process, of all its descendants, and of those that ended, in seconds."""
    parents: dict[int, list[int]] = {}
    times: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        number = int(folder.name)
        parents.setdefault(int(fields[1]), []).append(number)
        times[number] = sum(int(t) for t in fields[11:15]) / _TICKS
    total, todo = 0.0, [pid]
    while todo:
        number = todo.pop()
        total += times.get(number, 0.0)
        todo += parents.get(number, [])
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def peak_bytes(pid: int) -> int:
    """Largest resident memory of a process since its start, or since `reset_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak(pid: int) -> None:
    """Let `peak_bytes` begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
