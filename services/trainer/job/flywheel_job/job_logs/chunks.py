"""The form of a job's logs on the object store: chunks of a byte stream, named by offset and attempt.

The chunk `{offset}-{attempt}` has the bytes of the stream from `offset` on. A chunk grows until it is full;
the next one begins at its end. A later attempt continues at the end of the earlier one, and its chunks
replace what an earlier attempt still writes from there on. A gap between two chunks was cut out to bound the
log.

`job_logs.writing` writes them inside of jobs, `jobs.logs` reads them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CHUNK_BYTES = 256 * 1024
HEAD_BYTES = TAIL_BYTES = 32 * 1024 * 1024
"""Bytes of an attempt's stream that are kept from its beginning, and from its end."""
PART_BYTES = 1024 * 1024
DRIVER = "driver"

_KEY = re.compile(r"(\d{20})-(\d{4})")


@dataclass(frozen=True, order=True)
class Chunk:
    """A stored chunk of a stream."""

    start: int
    attempt: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class LogPart:
    """A part of a stream, and the offset after it."""

    data: bytes
    offset: int


def chunk_name(start: int, attempt: int) -> str:
    return f"{start:020d}-{attempt:04d}"


def stream_of(names_and_sizes: Iterable[tuple[str, int]]) -> list[Chunk]:
    """The chunks that make up the stream, in order. Names of other objects are skipped."""
    found = [
        Chunk(int(match[1]), int(match[2]), size)
        for name, size in names_and_sizes
        if (match := _KEY.fullmatch(name))
    ]
    begins: dict[int, int] = {}
    for chunk in sorted(found):
        begins.setdefault(chunk.attempt, chunk.start)
    return sorted(
        chunk
        for chunk in found
        if not any(attempt > chunk.attempt and chunk.start >= begin for attempt, begin in begins.items())
    )


def next_chunks(chunks: Sequence[Chunk], offset: int, limit: int = PART_BYTES) -> tuple[int, list[Chunk]]:
    """(bytes cut out before them, chunks to read) for a reader at `offset`."""
    wanted: list[Chunk] = []
    cut = 0
    at = offset
    for index, chunk in enumerate(chunks):
        end = min(chunk.end, chunks[index + 1].start) if index + 1 < len(chunks) else chunk.end
        if end <= at:
            continue
        if chunk.start > at:
            if wanted:
                break
            cut, at = chunk.start - at, chunk.start
        wanted.append(Chunk(chunk.start, chunk.attempt, end - chunk.start))
        at = end
        if at - max(offset, wanted[0].start) >= limit:
            break
    return cut, wanted


def cut_notice(cut: int) -> bytes:
    return f"[{cut:,} bytes were cut out of the log here]\n".encode() if cut else b""


def whole_lines(data: bytes, *, ended: bool, limit: int = PART_BYTES) -> bytes:
    """The beginning of `data` that can be shown: up to a line end, or for a very long line up to a
    character's end. Everything if the stream has ended."""
    if ended and len(data) <= limit:
        return data
    part = data[:limit]
    end = part.rfind(b"\n") + 1
    if end:
        return part[:end]
    if len(part) < limit:
        return b""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(part)
    pending = decoder.getstate()[0]
    return part[: len(part) - len(pending)]
