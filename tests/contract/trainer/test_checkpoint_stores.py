"""Contract tests for stores of the records of checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flywheel_common.granted.errors import AttemptEnded
from flywheel_trainer.checkpoints.checkpoint import Checkpoint
from flywheel_trainer.jobs.attempt import engine_id
from flywheel_trainer.jobs.job import Job
from flywheel_trainer.runs.errors import ForeignRun
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT, EXPERIMENT, SECOND

LATER = AT + SECOND
ATTEMPT = engine_id("job-1", 1)


def saved(step: int, folder: str = "", **fields: Any) -> Checkpoint:
    made = Checkpoint(folder, f"{step:012d}-000001", step, 1, 2, 1 << 40, AT, {"loss": 0.5})
    return replace(made, **fields)


@pytest.fixture
async def job(stores: Any) -> Job:
    """A job with an attempt, and another one."""
    await stores.runs.create_experiment(EXPERIMENT, "", b"", AT)
    supervision = await stores.supervise()
    made: list[Job] = [await stores.jobs.create(build.job(number), {}, "", b"", AT) for number in ("1", "2")]
    for one in made:
        await supervision.begin_attempt(one.name, AT)
        await supervision.mark_running(one.name, 1, AT)
    return made[0]


async def listed(stores: Any, job: Job) -> list[Checkpoint]:
    return list((await stores.checkpoints.list(job.name, 100, "")).items)


async def test_the_records_of_a_folder_are_replaced(stores: Any, job: Job) -> None:
    store = stores.checkpoints
    await store.replace(job.name, "", [saved(1), saved(2)], ATTEMPT, AT)
    await store.replace(job.name, "trials/0", [saved(1, "trials/0")], ATTEMPT, AT)
    assert await listed(stores, job) == [saved(1), saved(2), saved(1, "trials/0")]
    # What is known stays as it is: a later attempt reads the same marker.
    again = replace(saved(2), created_at=LATER, metrics={})
    await store.replace(job.name, "", [again, saved(3)], ATTEMPT, AT)
    assert await listed(stores, job) == [saved(2), saved(3), saved(1, "trials/0")]
    await store.replace(job.name, "trials/0", [], ATTEMPT, AT)
    await store.replace(job.name, "", [], ATTEMPT, AT)
    assert await listed(stores, job) == []


async def test_a_clock_that_is_ahead_gives_no_time_in_the_future(stores: Any, job: Job) -> None:
    await stores.checkpoints.replace(job.name, "", [saved(1, created_at=LATER)], ATTEMPT, AT)
    assert [one.created_at for one in await listed(stores, job)] == [AT]


async def test_records_are_listed_in_pages(stores: Any, job: Job) -> None:
    for folder in ("", "trials/0", "trials/1"):
        await stores.checkpoints.replace(
            job.name, folder, [saved(step, folder) for step in (1, 2)], ATTEMPT, AT
        )
    found, token = [], ""
    while True:
        page = await stores.checkpoints.list(job.name, 4, token)
        found += [(one.folder, one.step) for one in page.items]
        token = page.next_page_token
        if not token:
            break
    assert found == [(folder, step) for folder in ("", "trials/0", "trials/1") for step in (1, 2)]


async def test_only_an_active_attempt_of_the_job_records(stores: Any, job: Job) -> None:
    for attempt, error in [
        (engine_id("job-2", 1), ForeignRun),
        (engine_id("job-1", 2), AttemptEnded),
        ("", AttemptEnded),
    ]:
        with pytest.raises(error):
            await stores.checkpoints.replace(job.name, "", [saved(1)], attempt, AT)
    assert await listed(stores, job) == []
