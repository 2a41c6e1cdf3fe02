"""Contract tests for job logs: in memory, and on S3 with the engine's log of running jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from flywheel_common.storage.s3 import object_store
from flywheel_trainer.fakes.engine import MemoryEngine, MemoryJobLogs
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.jobs.logs import StoredOrLiveLogs
from flywheel_trainer.jobs.ports import JobLogs

JOB = JobName("p", "job-1")
TEXT = "Verlust 0.5\nzurück\n"


@dataclass
class Logs:
    port: JobLogs
    run_job: Callable[[], Awaitable[None]]
    """Runs JOB, which prints TEXT."""
    end_job: Callable[[], Awaitable[None]]
    """Stores the log of the ended JOB, and lets the engine forget the job."""


@pytest.fixture(params=["memory", "s3"])
async def logs(request: pytest.FixtureRequest) -> AsyncIterator[Logs]:
    if request.param == "memory":
        memory = MemoryJobLogs()

        async def print_text() -> None:
            memory.texts[JOB] = TEXT.encode()

        async def keep_text() -> None:
            """The log does not change."""

        yield Logs(memory, print_text, keep_text)
        return
    engine = MemoryEngine({"talk": lambda _: (TEXT, 0)})
    async with object_store(request.getfixturevalue("s3_settings")) as objects:

        async def run_on_engine() -> None:
            await engine.submit(JOB.job, "talk", {})

        async def store_and_forget() -> None:
            await objects.put("jobs/p/job-1/log.txt", await engine.log(JOB.job))
            engine.forget()

        yield Logs(StoredOrLiveLogs(objects, engine), run_on_engine, store_and_forget)


async def test_a_log_is_complete_while_the_job_runs_and_after_it_ended(logs: Logs) -> None:
    assert b"" == await logs.port.read(JOB)
    await logs.run_job()
    assert TEXT.encode() == await logs.port.read(JOB)
    await logs.end_job()
    assert TEXT.encode() == await logs.port.read(JOB)
    assert b"" == await logs.port.read(JobName("p", "job-2"))
