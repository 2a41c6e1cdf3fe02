"""The job runner over a store in memory: success, failure, retry, resumption and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from flywheel_common.errors import FailedPrecondition
from flywheel_common.ids import SequentialIds
from flywheel_feature.definitions.errors import WrongSpine
from flywheel_feature.fakes.jobs import MemoryJobs
from flywheel_feature.jobs.model import Job, JobState
from flywheel_feature.jobs.runner import Handler, JobContext, JobRunner
from flywheel_feature.tables.errors import ObjectStoreDown
from tests.support.eventually import eventually

AT = datetime(2026, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def running(store: MemoryJobs, handler: Handler, owner: str = "n") -> AsyncIterator[JobRunner]:
    runner = JobRunner(store, SequentialIds(owner), lambda: AT)
    runner.register("BUILD", handler)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ended(runner: JobRunner, job: Job) -> Job:
    async def over() -> Job | None:
        found = await runner.get("p", job.id)
        return found if found.state.ended else None

    found: Job = await eventually(over, within=10)
    return found


async def test_a_job_succeeds_with_the_result_of_its_handler() -> None:
    async def handler(job: JobContext) -> Mapping[str, object]:
        job.progress(2, 2, "rows", "done")
        return {"request": job.request.decode()}

    async with running(MemoryJobs(), handler) as runner:
        job = await runner.submit("BUILD", b"all of it", project="p")
        found = await ended(runner, job)
    assert (JobState.SUCCEEDED, {"request": "all of it"}, AT) == (found.state, found.result, found.ended_at)
    assert (2, "done") == (found.progress.done, found.progress.message)


@pytest.mark.parametrize(
    ("error", "reason", "shown"),
    [
        (
            WrongSpine("The spine has no time."),
            "WRONG_SPINE",
            "The spine has no time.",
        ),
        (RuntimeError("password=hunter2"), "INTERNAL", "error id"),
    ],
)
async def test_a_failed_job_has_a_reason_and_never_an_exception_text(
    error: Exception, reason: str, shown: str
) -> None:
    async def handler(job: JobContext) -> None:
        raise error

    async with running(MemoryJobs(), handler) as runner:
        found = await ended(runner, await runner.submit("BUILD", b"", project="p"))
    assert (JobState.FAILED, reason) == (found.state, found.error_reason)
    assert shown in found.error_message
    assert "hunter2" not in found.error_message


async def test_a_job_resumes_from_its_checkpoint_after_a_restart() -> None:
    store, begun = MemoryJobs(), asyncio.Event()

    async def first(job: JobContext) -> None:
        await job.save_checkpoint(b"half")
        begun.set()
        await asyncio.Event().wait()

    async def second(job: JobContext) -> Mapping[str, object]:
        return {"from": job.checkpoint.decode(), "attempt": job.job.attempt}

    async with running(store, first) as runner:
        job = await runner.submit("BUILD", b"", project="p")
        await begun.wait()
    async with running(store, second, "m") as runner:
        found = await ended(runner, job)
    assert (JobState.SUCCEEDED, {"from": "half", "attempt": 2}) == (found.state, found.result)


async def test_a_job_is_retried_when_a_dependency_was_down() -> None:
    now = 0.0
    calls: list[int] = []

    async def handler(job: JobContext) -> None:
        calls.append(job.job.attempt)
        if len(calls) == 1:
            raise ObjectStoreDown("S3 does not answer.")

    async with running(MemoryJobs(lambda: now), handler) as runner:
        job = await runner.submit("BUILD", b"", project="p")
        await eventually(lambda: calls == [1])

        async def waits() -> bool:
            return (await runner.get("p", job.id)).state is JobState.QUEUED

        await eventually(waits)
        now = 60.0
        found = await ended(runner, job)
    assert (JobState.SUCCEEDED, [1, 2]) == (found.state, calls)


async def test_a_running_job_can_be_cancelled_and_an_ended_one_cannot() -> None:
    stuck, begun = asyncio.Event(), asyncio.Event()

    async def handler(job: JobContext) -> None:
        begun.set()
        await stuck.wait()

    async with running(MemoryJobs(), handler) as runner:
        job = await runner.submit("BUILD", b"", project="p")
        await begun.wait()
        assert JobState.RUNNING == (await runner.cancel("p", job.id)).state
        assert JobState.CANCELLED == (await ended(runner, job)).state
        stuck.set()
        other = await ended(runner, await runner.submit("BUILD", b"", project="p"))
        assert JobState.SUCCEEDED == other.state
        with pytest.raises(FailedPrecondition) as over:
            await runner.cancel("p", other.id)
    assert "JOB_ENDED" == over.value.reason


async def test_watch_yields_the_states_until_the_end() -> None:
    gate = asyncio.Event()

    async def handler(job: JobContext) -> None:
        await gate.wait()

    async with running(MemoryJobs(), handler) as runner:
        job = await runner.submit("BUILD", b"", project="p")
        seen: list[JobState] = []
        async for state in runner.watch("p", job.id):
            seen.append(state.state)
            if state.state is JobState.RUNNING:
                gate.set()
    assert [JobState.RUNNING, JobState.SUCCEEDED] == seen[-2:]
