"""Logs in chunks: what is kept, in which order it is read, and where it is cut."""

from __future__ import annotations

import pytest

from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_job.job_logs.chunks import Chunk, chunk_name, stream_of, whole_lines
from flywheel_job.job_logs.writing import LogWriter
from flywheel_trainer.jobs.files import log_prefix
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.jobs.logs import StoredLogs

JOB = JobName("p", "job-1")


class Folder(dict[str, bytes]):
    """Stored chunks by name; while `down` is set, nothing can be stored."""

    down = False
    puts = 0

    def put(self, name: str, data: bytes) -> None:
        if self.down:
            raise OSError("S3 does not answer")
        self.puts += 1
        self[name] = data

    def writer(self, attempt: int = 1, start: int = 0, head: int = 16, tail: int = 16) -> LogWriter:
        """Chunks have 4 bytes."""
        return LogWriter(
            self.put,
            lambda name: self.pop(name, None),
            attempt=attempt,
            start=start,
            head_bytes=head,
            tail_bytes=tail,
            chunk_bytes=4,
        )


async def read(folder: Folder, offset: int = 0, *, ended: bool = True) -> tuple[bytes, int]:
    """Everything from an offset on, and the offset at the end."""
    objects = MemoryObjectStore()
    for name, data in folder.items():
        await objects.put(f"{log_prefix(JOB, 'driver')}/{name}", data)
    text, logs = b"", StoredLogs(objects)
    while True:
        part = await logs.read(JOB, "driver", offset, ended=ended)
        if not part.data:
            return text, offset
        text, offset = text + part.data, part.offset


async def test_a_short_log_is_kept_whole() -> None:
    folder = Folder()
    writer = folder.writer()
    for line in (b"one\n", b"two", b"\nthree\n"):
        writer.write(line)
        writer.flush()
    assert (b"one\ntwo\nthree\n", 14) == await read(folder)
    assert (b"o\nthree\n", 14) == await read(folder, 6)


@pytest.mark.parametrize("flush_every", [1, 3, 1000])
async def test_the_middle_of_a_long_log_is_cut_out(flush_every: int) -> None:
    folder = Folder()
    writer = folder.writer()
    for number in range(100):
        writer.write(f"{number:03d}\n".encode())
        if number % flush_every == 0:
            writer.flush()
    writer.flush()
    kept = [*range(4), *range(96, 100)]
    lines = [f"{number:03d}\n" for number in kept]
    cut = "[368 bytes were cut out of the log here]\n"
    assert ("".join([*lines[:4], cut, *lines[4:]]).encode(), 400) == await read(folder)
    assert 32 == sum(map(len, folder.values()))
    assert ("".join([cut.replace("368", "184"), *lines[4:]]).encode(), 400) == await read(folder, 200)


async def test_a_log_that_cannot_be_stored_is_bounded_and_follows_later() -> None:
    folder = Folder()
    writer = folder.writer()
    folder.down = True
    for number in range(100):
        writer.write(f"{number:03d}\n".encode())
        with pytest.raises(OSError, match="S3"):
            writer.flush()
    folder.down = False
    writer.flush()
    text, end = await read(folder)
    assert (text.startswith(b"000\n001\n"), text.endswith(b"099\n"), end) == (True, True, 400)


async def test_without_news_nothing_is_stored_again() -> None:
    folder = Folder()
    writer = folder.writer()
    writer.write(b"one\ntwo")
    writer.flush()
    writer.flush()
    assert 2 == folder.puts


async def test_the_next_attempt_continues_the_stream_and_outranks_a_late_writer() -> None:
    folder = Folder()
    first = folder.writer()
    first.write(b"aaa\n")
    first.flush()
    second = folder.writer(attempt=2, start=4)
    second.write(b"bbb\nccc\n")
    second.flush()
    first.write(b"zzz\nyyy\nxxx\n")
    first.flush()
    assert (b"aaa\nbbb\nccc\n", 12) == await read(folder)


def test_names_that_are_no_chunks_are_skipped() -> None:
    names = [(chunk_name(0, 1), 3), ("", 0), ("notes.txt", 9), (chunk_name(3, 2), 2)]
    assert [Chunk(0, 1, 3), Chunk(3, 2, 2)] == stream_of(names)


@pytest.mark.parametrize(
    ("data", "ended", "expected"),
    [
        (b"one\ntwo", False, b"one\n"),
        (b"one\ntwo", True, b"one\ntwo"),
        (b"one", False, b""),
        ("one zurück".encode(), False, b"one zur"),  # a line longer than the limit: no character is cut
        ("one zurück".encode(), True, b"one zur"),
        (b"\xff" * 9, False, b"\xff" * 8),
    ],
)
def test_a_part_ends_with_a_line_or_with_a_character(data: bytes, ended: bool, expected: bytes) -> None:
    assert expected == whole_lines(data, ended=ended, limit=8)
