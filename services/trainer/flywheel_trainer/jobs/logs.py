"""Reads logs of jobs from the object store, while jobs run and after they have ended."""

from __future__ import annotations

import re

from flywheel_common.deadline import budget, left_seconds
from flywheel_common.errors import FlywheelError
from flywheel_common.storage.objects import ObjectStore
from flywheel_common.telemetry.logs import get_logger
from flywheel_job.job_logs.chunks import (
    DRIVER,
    Chunk,
    LogPart,
    chunk_name,
    cut_notice,
    next_chunks,
    stream_of,
    whole_lines,
)
from flywheel_trainer.jobs.attempt import Attempt
from flywheel_trainer.jobs.engine import Engine
from flywheel_trainer.jobs.errors import InvalidLogStream
from flywheel_trainer.jobs.files import log_prefix
from flywheel_trainer.jobs.job import JobName

log = get_logger(__name__)

_STREAM = re.compile(r"driver|rank-\d{1,6}")

TAIL_BYTES = 16_384
LOG_SECONDS = 5.0
"""Timeout of a read, so that WatchJob sends the state of a job while the object store hangs."""


def check_stream(stream: str) -> str:
    """The name of the stream; empty means the driver's. Raises InvalidLogStream."""
    if _STREAM.fullmatch(stream or DRIVER) is None:
        raise InvalidLogStream(
            f"log_stream {stream[:80]!r} must be `driver` or `rank-N`.", field="log_stream"
        )
    return stream or DRIVER


class StoredLogs:
    """`JobLogs` on the object store.

    A read without news is one listing of at most a few hundred keys; it fetches only chunks with new bytes.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def read(self, job: JobName, stream: str, offset: int, *, ended: bool) -> LogPart:
        left = left_seconds()
        try:
            with budget(LOG_SECONDS if left is None else min(LOG_SECONDS, left / 2)):
                return await self._read(job, stream, offset, ended)
        except FlywheelError:
            return LogPart(b"", offset)

    async def tail(self, job: JobName, max_bytes: int) -> bytes:
        """The end of the driver's log, at most `max_bytes`."""
        chunks = await self._chunks(job, DRIVER)
        if not chunks:
            return b""
        part = await self._read(job, DRIVER, max(0, chunks[-1].end - max_bytes), ended=True)
        return part.data[-max_bytes:]

    async def end_of(self, job: JobName) -> tuple[int, int]:
        """(offset of the end of the driver's log, the last attempt that wrote to it)."""
        chunks = await self._chunks(job, DRIVER)
        return (chunks[-1].end, chunks[-1].attempt) if chunks else (0, 0)

    async def tail_of_attempt(self, job: JobName, attempt: Attempt, engine: Engine) -> bytes:
        """The end of an attempt's log; a log that is lost does not delay the end of the job.

        If the launcher could not start, only the engine has a log, which is stored like the launcher's.
        """
        try:
            end, writer = await self.end_of(job)
            if writer == attempt.number:
                return await self.tail(job, TAIL_BYTES)
            text = await engine.log_tail(attempt.engine_id, TAIL_BYTES)
            if text:
                await self.append(job, attempt.number, end, text)
            return text
        except FlywheelError as error:
            log.warning("job log not read", job=str(job), reason=error.reason, error=error.message)
            return b""

    async def append(self, job: JobName, attempt: int, start: int, text: bytes) -> None:
        """Store text of the engine for an attempt that stored no log of its own."""
        await self._objects.put(f"{log_prefix(job, DRIVER)}/{chunk_name(start, attempt)}", text)

    async def _read(self, job: JobName, stream: str, offset: int, ended: bool) -> LogPart:
        cut, chunks = next_chunks(await self._chunks(job, stream), offset)
        if not chunks:
            return LogPart(b"", offset)
        prefix = log_prefix(job, stream)
        data = b""
        for chunk in chunks:
            # The chunk may have grown since the listing: the rest belongs to the next read.
            stored = await self._objects.get(f"{prefix}/{chunk_name(chunk.start, chunk.attempt)}")
            data += stored[: chunk.size]
        start = max(offset, chunks[0].start)
        part = whole_lines(data[start - chunks[0].start :], ended=ended)
        if not part:
            return LogPart(b"", offset)
        return LogPart(cut_notice(cut) + part, start + len(part))

    async def _chunks(self, job: JobName, stream: str) -> list[Chunk]:
        prefix = log_prefix(job, stream) + "/"
        return stream_of(
            [(info.key.removeprefix(prefix), info.size) async for info in self._objects.list(prefix)]
        )
