"""Ends the children of its parent process after the parent has ended, whatever ended it.

Runs as a separate script (standard library only). Its standard input is a pipe from the parent with one line
per child: ``+<pid> <mark>`` registers it, ``-<pid>`` removes it. End of file means that the parent is gone,
even after SIGKILL. The registered children are then terminated, with their process groups and all processes
that have their mark in the environment.
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


def family(roots: set[int]) -> set[int]:
    """Living members of the process groups of the roots, and all their descendants, without zombies."""
    parents: dict[int, int] = {}
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] in "ZX":
            continue
        parents[int(entry)] = int(fields[1])
        if int(entry) in roots or int(fields[2]) in roots:
            found.add(int(entry))
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
    children: dict[int, str] = {}
    for line in sys.stdin:
        word = line.split()
        if line.startswith("+"):
            children[int(word[0][1:])] = word[1]
        elif line.startswith("-"):
            children.pop(int(word[0][1:]), None)

    def remaining() -> set[int]:
        return marked(set(children.values())) | family(set(children))

    if not children or not remaining():
        return
    # SIGINT is PostgreSQL's fast, clean shutdown; the others stop on SIGTERM.
    send(remaining(), signal.SIGTERM)
    send(set(children), signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    while remaining() and time.monotonic() < deadline:
        time.sleep(0.1)
    while pids := remaining():
        send(pids, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
