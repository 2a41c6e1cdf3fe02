"""One law for the logs of jobs: in memory, and kept in S3 at a job's end with the engine's own until then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from flywheel_common.storage.s3 import object_store
from flywheel_trainer.fakes.engine import MemoryEngine, MemoryJobLogs
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.jobs.logs import KeptLogs
from flywheel_trainer.jobs.ports import JobLogs

JOB = JobName("p", "job-1")
TEXT = "Verlust 0.5\nzurück\n"


@dataclass
class Logs:
    port: JobLogs
    prints: Callable[[], Awaitable[None]]
    """JOB runs and prints TEXT."""
    ends: Callable[[], Awaitable[None]]
    """JOB's end is written down, and its engine forgets it."""


@pytest.fixture(params=["memory", "s3"])
async def logs(request: pytest.FixtureRequest) -> AsyncIterator[Logs]:
    if request.param == "memory":
        memory = MemoryJobLogs()

        async def prints() -> None:
            memory.texts[JOB] = TEXT.encode()

        async def ends() -> None:
            """A text that is there stays."""

        yield Logs(memory, prints, ends)
        return
    engine = MemoryEngine({"talk": lambda _: (TEXT, 0)})
    async with object_store(request.getfixturevalue("s3_settings")) as objects:

        async def runs() -> None:
            await engine.submit(JOB.job, "talk", {})

        async def kept() -> None:
            await objects.put("jobs/p/job-1/log.txt", await engine.log(JOB.job))
            engine.forget()

        yield Logs(KeptLogs(objects, engine), runs, kept)


async def test_a_log_is_empty_then_whole_while_the_job_runs_and_after_it_ended(logs: Logs) -> None:
    assert b"" == await logs.port.read(JOB)
    await logs.prints()
    assert TEXT.encode() == await logs.port.read(JOB)
    await logs.ends()
    assert TEXT.encode() == await logs.port.read(JOB)
    assert b"" == await logs.port.read(JobName("p", "job-2"))
