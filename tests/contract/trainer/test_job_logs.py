"""Contract tests for job logs: in memory, and as chunks on S3 that the writer inside of a job stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import arrow_filesystem, object_store
from flywheel_job.job_logs.writing import LogWriter
from flywheel_trainer.fakes.engine import MemoryJobLogs
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.jobs.logs import StoredLogs
from flywheel_trainer.jobs.ports import JobLogs

JOB = JobName("p", "job-1")


@dataclass
class Logs:
    port: JobLogs
    prints: Callable[[str, bytes], Awaitable[None]]
    """A stream of JOB gets more bytes."""


@pytest.fixture(params=["memory", "s3"])
async def logs(request: pytest.FixtureRequest) -> AsyncIterator[Logs]:
    if request.param == "memory":
        memory = MemoryJobLogs()

        async def append(stream: str, data: bytes) -> None:
            memory.texts[JOB, stream] = memory.texts.get((JOB, stream), b"") + data

        yield Logs(memory, append)
        return
    settings: S3Settings = request.getfixturevalue("s3_settings")
    files = arrow_filesystem(settings)
    writers: dict[str, LogWriter] = {}

    def store(stream: str, data: bytes) -> None:
        folder = f"{settings.s3_bucket}/jobs/p/job-1/logs/{stream}"

        def put(name: str, content: bytes) -> None:
            with files.open_output_stream(f"{folder}/{name}") as output:
                output.write(content)

        if stream not in writers:
            writers[stream] = LogWriter(
                put, lambda name: files.delete_file(f"{folder}/{name}"), attempt=1, start=0, chunk_bytes=8
            )
        writers[stream].write(data)
        writers[stream].flush()

    async def write(stream: str, data: bytes) -> None:
        await asyncio.to_thread(store, stream, data)

    async with object_store(settings) as objects:
        await objects.ensure_bucket()
        yield Logs(StoredLogs(objects), write)


async def test_a_log_is_read_to_the_end_of_a_line_while_the_job_runs(logs: Logs) -> None:
    assert b"" == (await logs.port.read(JOB, "driver", 0, ended=False)).data
    await logs.prints("driver", b"Verlust 0.5\nzur")
    first = await logs.port.read(JOB, "driver", 0, ended=False)
    assert (b"Verlust 0.5\n", 12) == (first.data, first.offset)
    again = await logs.port.read(JOB, "driver", first.offset, ended=False)
    assert (b"", 12) == (again.data, again.offset)
    await logs.prints("driver", "ück\nEnde ohne Zeile\xff".encode("latin-1"))
    second = await logs.port.read(JOB, "driver", first.offset, ended=False)
    assert b"zur\xfcck\n" == second.data
    last = await logs.port.read(JOB, "driver", second.offset, ended=True)
    assert b"Ende ohne Zeile\xff" == last.data
    assert b"" == (await logs.port.read(JOB, "driver", last.offset, ended=True)).data


async def test_streams_and_jobs_are_apart(logs: Logs) -> None:
    await logs.prints("driver", b"d\n")
    await logs.prints("rank-1", b"one\n")
    assert b"one\n" == (await logs.port.read(JOB, "rank-1", 0, ended=True)).data
    assert b"" == (await logs.port.read(JOB, "rank-10", 0, ended=True)).data
    assert b"" == (await logs.port.read(JobName("p", "job-10"), "driver", 0, ended=True)).data
