"""The job runner over a store in memory: success, failure, retry, resumption and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from flywheel_common.errors import FailedPrecondition
from flywheel_common.ids import SequentialIds
from flywheel_common.postgres.errors import StatementTimeout
from flywheel_feature.definitions.errors import WrongSpine
from flywheel_feature.fakes.jobs import MemoryJobs
from flywheel_feature.jobs import runner as runner_module
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


class FailingJobs(MemoryJobs):
    """Fails each method named in `errors`, once per error."""

    def __init__(self, **errors: list[Exception]) -> None:
        super().__init__()
        self.errors = errors

    async def claim(self, *arguments: Any) -> Job | None:
        self._fail("claim")
        return await super().claim(*arguments)

    async def heartbeat(self, *arguments: Any) -> bool | None:
        self._fail("heartbeat")
        return await super().heartbeat(*arguments)

    async def finish(self, *arguments: Any) -> None:
        self._fail("finish")
        await super().finish(*arguments)

    def _fail(self, method: str) -> None:
        if self.errors.get(method):
            raise self.errors[method].pop(0)


TIMED_OUT = StatementTimeout("A statement took too long.")


async def succeeds(job: JobContext) -> None:
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("method", ["claim", "heartbeat", "finish"])
async def test_a_retryable_error_of_the_store_ends_neither_the_job_nor_the_runner(method: str) -> None:
    store = FailingJobs(**{method: [TIMED_OUT]})
    async with running(store, succeeds) as runner:
        found = await ended(runner, await runner.submit("BUILD", b"", project="p"))
    assert (JobState.SUCCEEDED, 1) == (found.state, found.attempt)
    assert not store.errors[method]


async def test_a_job_whose_end_cannot_be_stored_runs_again_when_its_lease_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_module, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(runner_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(runner_module, "WRITE_RETRY_SECONDS", (0.01, 0.01))
    store = FailingJobs(finish=[TIMED_OUT] * 3)
    async with running(store, succeeds) as runner:
        found = await ended(runner, await runner.submit("BUILD", b"", project="p"))
    assert (JobState.SUCCEEDED, 2) == (found.state, found.attempt)


@pytest.mark.parametrize("method", ["claim", "heartbeat", "finish"])
async def test_the_runner_carries_out_all_jobs_after_an_unexpected_error(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with as many jobs as slots at the time of the error: no slot is lost."""
    monkeypatch.setattr(runner_module, "LEASE_SECONDS", 0.3)
    store = FailingJobs(**{method: [RuntimeError("broken")]})
    runner = JobRunner(store, SequentialIds("n"), lambda: AT)
    runner.register("BUILD", succeeds)
    jobs = [await runner.submit("BUILD", b"", project="p") for _ in range(6)]
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(runner.run(), 5)
    assert [str(error) for error in caught.value.exceptions] == ["broken"]
    again = asyncio.create_task(runner.run())
    try:
        found = [await ended(runner, job) for job in jobs]
    finally:
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
    assert [job.state for job in found] == [JobState.SUCCEEDED] * 6
