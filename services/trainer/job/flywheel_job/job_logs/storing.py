"""Stores the log of a process while it runs: of the launcher's command, and of each rank."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pyarrow import fs

from flywheel_common.storage.whole_files import write_whole
from flywheel_job.job_logs.chunks import Chunk, stream_of
from flywheel_job.job_logs.writing import LogWriter

FLUSH_SECONDS = 1.0
LAST_FLUSH_SECONDS = 30.0
"""How long the last bytes are tried to be stored, if the store is away when the log ends."""
READ_BYTES = 64 * 1024


@contextmanager
def stored_log(
    store: fs.FileSystem, folder: str, attempt: int, *, last_flush_seconds: float = LAST_FLUSH_SECONDS
) -> Iterator[LogWriter]:
    """A writer of the stream in `folder` (`bucket/prefix`), which continues at the end of earlier attempts.

    A thread stores new bytes every second, and the last ones at the end.
    """

    def put(name: str, data: bytes) -> None:
        write_whole(store, f"{folder}/{name}", data)

    earlier = [chunk for chunk in _chunks_in(store, folder) if chunk.attempt < attempt]
    writer = LogWriter(
        put,
        lambda name: store.delete_file(f"{folder}/{name}"),
        attempt=attempt,
        start=max((chunk.end for chunk in earlier), default=0),
    )
    done = threading.Event()
    flusher = threading.Thread(
        target=_flush_until, args=(writer, done, last_flush_seconds), name="log", daemon=True
    )
    flusher.start()
    try:
        yield writer
    finally:
        done.set()
        flusher.join(timeout=last_flush_seconds + FLUSH_SECONDS)


def _chunks_in(store: fs.FileSystem, folder: str) -> list[Chunk]:
    """The chunks that are stored; a store that is away is asked again for a while."""
    give_up = time.monotonic() + LAST_FLUSH_SECONDS
    while True:
        try:
            found = store.get_file_info(fs.FileSelector(folder, allow_not_found=True))
            return stream_of((file.base_name, file.size or 0) for file in found)
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(FLUSH_SECONDS)


@contextmanager
def output_copied_to(writer: LogWriter) -> Iterator[None]:
    """Copies what this process writes to its standard output and error, also from C code, to a log."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)

    def copy() -> None:
        while data := os.read(reading, READ_BYTES):
            writer.write(data)
            os.write(kept[0], data)

    copier = threading.Thread(target=copy, name="output", daemon=True)
    copier.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        # A child process may still have the pipe open: then the copier ends with this process.
        copier.join(timeout=2)
        for descriptor in kept if not copier.is_alive() else kept[1:]:
            os.close(descriptor)
        if not copier.is_alive():
            os.close(reading)


def _flush_until(writer: LogWriter, done: threading.Event, last_flush_seconds: float) -> None:
    give_up = float("inf")
    while True:
        last = done.wait(FLUSH_SECONDS)
        if last and give_up == float("inf"):
            give_up = time.monotonic() + last_flush_seconds
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
