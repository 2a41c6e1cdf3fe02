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
from typing import IO

from pyarrow import fs

from flywheel_job import objects
from flywheel_job.job_logs.chunks import stream_of
from flywheel_job.job_logs.writing import LogWriter

FLUSH_SECONDS = 1.0
READ_BYTES = 64 * 1024
GRACE_SECONDS = 2.0
"""How long the command may take to end after SIGTERM. Ray sends SIGKILL to all after 3 s."""
LAST_FLUSH_SECONDS = 30.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status; 128 + n if signal n ended it."""
    log_uri, attempt, separator, *command = arguments
    if separator != "--" or not command:
        raise SystemExit("usage: python -m flywheel_job.launcher LOG_URI ATTEMPT -- COMMAND…")
    store = objects.open_store()
    folder = objects.path_of(log_uri)
    writer = _writer(store, folder, int(attempt))
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
    assert child.stdout is not None
    reader = threading.Thread(target=_copy, args=(child.stdout, writer), daemon=True)
    done = threading.Event()
    flusher = threading.Thread(target=_flush_until, args=(writer, done), daemon=True)
    reader.start()
    flusher.start()
    status = _wait(child, stopping)
    _end_descendants()
    reader.join(timeout=2)
    done.set()
    flusher.join(timeout=1 if stopping.is_set() else LAST_FLUSH_SECONDS)
    return 128 - status if status < 0 else status


def _writer(store: fs.FileSystem, folder: str, attempt: int) -> LogWriter:
    """A writer that continues the stream at the end of earlier attempts."""

    def put(name: str, data: bytes) -> None:
        with store.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(data)

    found = store.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    earlier = [c for c in stream_of((f.base_name, f.size or 0) for f in found) if c.attempt < attempt]
    return LogWriter(
        put,
        lambda name: store.delete_file(f"{folder}/{name}"),
        attempt=attempt,
        start=max((chunk.end for chunk in earlier), default=0),
    )


def _copy(stream: IO[bytes], writer: LogWriter) -> None:
    while data := os.read(stream.fileno(), READ_BYTES):
        writer.write(data)


def _flush_until(writer: LogWriter, done: threading.Event) -> None:
    """Store new output every second, and once more at the end, for which a store that is away is retried."""
    give_up = float("inf")
    while True:
        last = done.wait(FLUSH_SECONDS)
        if last and give_up == float("inf"):
            give_up = time.monotonic() + LAST_FLUSH_SECONDS
        try:
            writer.flush()
            if last:
                return
        except OSError as error:
            if last:
                if time.monotonic() > give_up:
                    sys.stderr.write(f"the end of the log was not stored: {error}\n")
                    return
                time.sleep(FLUSH_SECONDS)


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
