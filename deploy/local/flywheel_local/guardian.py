"""Outlives its parent by a moment and ends what the parent started, however the parent ended.

Runs as a script of its own (standard library only) with the parent's pipe as standard input: one line per child,
``+<pid> <mark>`` and ``-<pid>``. End of file means that the parent is gone, SIGKILL included; whatever is still
registered is then terminated, its process group and every process that carries its mark in the environment.
"""

from __future__ import annotations

import os
import signal
import sys
import time

MARK = "FLYWHEEL_LOCAL_PROCESS"
GRACE_SECONDS = 6.0


def marked(marks: set[str]) -> set[int]:
    """Processes whose environment carries one of the marks (those of other users are not readable and not ours)."""
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
    """Living members of the roots' process groups and all their descendants, zombies left out."""
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

    def left() -> set[int]:
        return marked(set(children.values())) | family(set(children))

    if not children or not left():
        return
    # PostgreSQL takes SIGINT for a prompt, clean stop; everything else takes SIGTERM.
    send(left(), signal.SIGTERM)
    send(set(children), signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    while pids := left():
        send(pids, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
