"""Writes one log stream of an attempt in chunks, bounded in memory, in requests and in stored bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from flywheel_job.job_logs.chunks import CHUNK_BYTES, HEAD_BYTES, TAIL_BYTES, chunk_name


@dataclass
class _Open:
    """A chunk that may have bytes that are not stored."""

    start: int
    data: bytearray = field(default_factory=bytearray)
    stored: int = 0


class LogWriter:
    """Collects bytes and stores them at each `flush`.

    `write` never waits for the object store. The first HEAD_BYTES and the last TAIL_BYTES are kept; chunks
    between them are dropped, or deleted if they were stored. Thus at most HEAD_BYTES + TAIL_BYTES are in
    memory, also while the object store does not answer.
    """

    def __init__(
        self,
        put: Callable[[str, bytes], None],
        delete: Callable[[str], None],
        *,
        attempt: int,
        start: int,
        head_bytes: int = HEAD_BYTES,
        tail_bytes: int = TAIL_BYTES,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """`put` and `delete` take the name of a chunk; `start` is the offset of the first byte."""
        self._put, self._delete = put, delete
        self._attempt, self._chunk_bytes = attempt, chunk_bytes
        self._head_end = start + head_bytes
        self._tail_chunks = max(1, tail_bytes // chunk_bytes)
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._head: list[_Open] = []
        self._tail: deque[_Open] = deque()
        self._doomed: list[str] = []
        self._end = start

    def write(self, data: bytes) -> None:
        """Append bytes to the stream."""
        view = memoryview(data)
        with self._lock:
            while view:
                chunk = self._current()
                part = view[: self._chunk_bytes - len(chunk.data)]
                chunk.data += part
                self._end += len(part)
                view = view[len(part) :]

    def flush(self) -> None:
        """Store what is new. Raises whatever `put` and `delete` raise; a later flush then continues."""
        with self._flushing:
            with self._lock:
                waiting = [c for c in (*self._head, *self._tail) if c.stored < len(c.data)]
            for chunk in waiting:
                with self._lock:
                    if chunk.stored < 0:
                        continue
                    data = bytes(chunk.data)
                self._put(self._name(chunk), data)
                with self._lock:
                    if chunk.stored < 0:
                        self._doomed.append(self._name(chunk))
                        continue
                    chunk.stored = len(data)
                    if chunk in self._head and len(data) == self._chunk_bytes:
                        self._head.remove(chunk)
            with self._lock:
                doomed = list(dict.fromkeys(self._doomed))
            for name in doomed:
                self._delete(name)
                with self._lock:
                    self._doomed = [other for other in self._doomed if other != name]

    def _current(self) -> _Open:
        """The chunk that takes the next byte."""
        if self._end < self._head_end:
            if not self._head or len(self._head[-1].data) == self._chunk_bytes:
                self._head.append(_Open(self._end))
            return self._head[-1]
        if not self._tail or len(self._tail[-1].data) == self._chunk_bytes:
            if len(self._tail) == self._tail_chunks:
                dropped = self._tail.popleft()
                if dropped.stored:
                    self._doomed.append(self._name(dropped))
                dropped.stored = -1
                dropped.data.clear()
            self._tail.append(_Open(self._end))
        return self._tail[-1]

    def _name(self, chunk: _Open) -> str:
        return chunk_name(chunk.start, self._attempt)
