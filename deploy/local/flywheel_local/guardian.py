"""Ends the children of its parent process after the parent has ended, whatever ended it.

Runs as a separate script (standard library only). Its standard input is a pipe from the parent with one line
per child: ``+<pid> <start> <mark>`` registers it, ``-<pid>`` removes it. End of file means that the parent is
gone, even after SIGKILL. The registered children are then terminated, with their process groups and all
processes that have their mark in the environment. A child is known by its process id and its start time: the
system may give the id to another process after the child has ended.
"""

from __future__ import annotations

import os
import signal
import sys
import time

MARK = "FLYWHEEL_LOCAL_PROCESS"
GRACE_SECONDS = 6.0


def marked(marks: set[str]) -> set[int]:
    """Processes with one of the marks in their environment. Those of other users cannot be read."""
    wanted = [f"{MARK}={mark}".encode() for mark in marks]
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                environment = file.read().split(b"\0")
        except OSError:
            continue
        if any(item in environment for item in wanted):
            found.add(int(entry))
    return found


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def start_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when there is no such process."""
    fields = stat_of(pid)
    return int(fields[19]) if fields else 0


def family(roots: dict[int, int]) -> set[int]:
    """Living members of the process groups of the roots, and all their descendants, without zombies. `roots`
    maps process ids to start times; an id that another process has now is ignored, as is its group."""
    reused = {pid for pid, start in roots.items() if start_of(pid) not in (start, 0)}
    own = roots.keys() - reused
    parents: dict[int, int] = {}
    found = set()
    for pid in [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]:
        fields = stat_of(pid)
        if not fields or fields[0] in "ZX":
            continue
        parents[pid] = int(fields[1])
        if pid in own or int(fields[2]) in own:
            found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return found


def send(pids: set[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    children: dict[int, int] = {}
    marks: dict[int, str] = {}
    for line in sys.stdin:
        word = line.split()
        pid = int(word[0][1:])
        if line.startswith("+"):
            children[pid], marks[pid] = int(word[1]), word[2]
        elif line.startswith("-"):
            children.pop(pid, None)
            marks.pop(pid, None)

    def remaining() -> set[int]:
        return marked(set(marks.values())) | family(children)

    if not children or not remaining():
        return
    # SIGINT is PostgreSQL's fast, clean shutdown; the others stop on SIGTERM.
    send(remaining(), signal.SIGTERM)
    send({pid for pid, start in children.items() if start_of(pid) == start}, signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    while remaining() and time.monotonic() < deadline:
        time.sleep(0.1)
    while pids := remaining():
        send(pids, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
