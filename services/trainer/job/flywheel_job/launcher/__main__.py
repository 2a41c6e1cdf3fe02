"""`python -m flywheel_job.launcher LOG_URI ATTEMPT -- COMMAND…`: runs the command and stores its output.

Ray's own log of a job is one growing file, which Ray can only return as a whole and not at all if it is no
UTF-8. So the launcher stores the output in bounded chunks on S3, and prints nothing but its own errors. When
the command has ended, the launcher ends all processes that the command left behind, and exits with the
command's status.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from flywheel_job.job_logs.writing import LogWriter

GRACE_SECONDS = 2.0
"""How long the command may take to end after SIGTERM. Ray sends SIGKILL to all after 3 s."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status; 128 + n if signal n ended it."""
    log_uri, attempt, separator, *command = arguments
    if separator != "--" or not command:
        raise SystemExit("usage: python -m flywheel_job.launcher LOG_URI ATTEMPT -- COMMAND…")
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # The command never outlives the launcher. No thread runs yet.
        preexec_fn=_die_with_launcher,  # noqa: PLW1509
    )
    stopping = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        stopping.set()
        child.terminate()

    signal.signal(signal.SIGTERM, stop)
    # Imported while the command starts: the client of the object store takes as long as an interpreter.
    from flywheel_job import objects
    from flywheel_job.job_logs.storing import stored_log

    assert child.stdout is not None
    with stored_log(objects.open_store(), objects.path_of(log_uri), int(attempt)) as writer:
        reader = threading.Thread(target=_copy, args=(child.stdout, writer), daemon=True)
        reader.start()
        status = _wait(child, stopping)
        _end_descendants()
        reader.join(timeout=2)
    return 128 - status if status < 0 else status


def _copy(stream: IO[bytes], writer: LogWriter) -> None:
    from flywheel_job.job_logs.storing import READ_BYTES

    while data := os.read(stream.fileno(), READ_BYTES):
        writer.write(data)


def _wait(child: subprocess.Popen[bytes], stopping: threading.Event) -> int:
    """The exit status; after SIGTERM the command has GRACE_SECONDS to end."""
    while True:
        try:
            return child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if stopping.is_set():
                break
    try:
        return child.wait(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _end_descendants() -> None:
    """Kill what the command left behind. Orphans become children of this process, which is their
    subreaper."""
    give_up = time.monotonic() + 5
    while (children := _children()) and time.monotonic() < give_up:
        for process in children:
            try:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def _children() -> list[int]:
    found: list[int] = []
    for tasks in Path("/proc/self/task").glob("*/children"):
        found += [int(process) for process in tasks.read_text().split()]
    return found


def _die_with_launcher() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
