"""Contract tests for stores of jobs, each of which is stored with its run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from flywheel_common.errors import InvalidPageToken
from flywheel_common.postgres.errors import RequestIdReused
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.errors import JobEnded, UnknownJob
from flywheel_trainer.jobs.job import FILTER_FIELDS, Job, JobName, JobState
from flywheel_trainer.runs.errors import UnknownExperiment
from flywheel_trainer.runs.filter_terms import parse_terms
from flywheel_trainer.runs.run import ExperimentName, RunName, RunState
from tests.support.builders import trainer as build
from tests.support.builders.trainer import ARTIFACT, AT, EXPERIMENT, SECOND, TRAIN_SPEC
from tests.support.builders.trainer import metric_point as point

EPOCH = {"done": 1, "total": 3, "unit": "epoch"}


@pytest.fixture
async def stores(stores: Any) -> Any:
    """Stores with EXPERIMENT."""
    await stores.runs.create_experiment(EXPERIMENT, "", b"", AT)
    return stores


async def create_job(
    stores: Any, number: str = "1", request_id: str = "", body: bytes = b"b", **fields: Any
) -> Job:
    details = {"uri": f"s3://b/{number}"}
    created_at = fields.get("created_at", AT)
    return await stores.jobs.create(build.job(number, **fields), details, request_id, body, created_at)


async def test_a_job_is_created_with_its_run_or_not_at_all(stores: Any) -> None:
    job = await create_job(stores, priority=3)
    assert (JobState.QUEUED, AT, TRAIN_SPEC, {}) == (job.state, job.created_at, job.spec, job.progress)
    assert job == await stores.jobs.get(job.name)
    run = await stores.runs.get_run(job.run)
    assert ("late", str(job.name), TRAIN_SPEC.training_set) == (run.experiment, run.job, run.training_set)
    orphan = Job(JobName("p", "job-x"), replace(TRAIN_SPEC, experiment="none"), RunName("p", "run-x"))
    with pytest.raises(UnknownExperiment):
        await stores.jobs.create(orphan, {}, "", b"", AT)
    assert (None, None) == (await stores.jobs.get(orphan.name), await stores.runs.get_run(orphan.run))
    assert await stores.jobs.get(JobName("q", "job-1")) is None


async def test_equal_requests_create_one_job(stores: Any) -> None:
    jobs = await asyncio.gather(*(create_job(stores, f"b{i}", "once") for i in range(10)))
    assert [jobs[0]] * 10 == jobs
    with pytest.raises(RequestIdReused):
        await create_job(stores, "x", "once", b"other", priority=9)
    assert [jobs[0]] == list((await stores.jobs.list("p", (), 99, "")).items)
    assert 1 == len((await stores.runs.list_runs("p", (), None, 99, "")).items)


async def test_a_job_is_found_by_the_request_that_created_it(stores: Any) -> None:
    job = await create_job(stores, "1", "once")
    assert job == await stores.jobs.find_by_request("once", b"b")
    assert await stores.jobs.find_by_request("never", b"b") is None
    assert await stores.jobs.find_by_request("", b"b") is None
    with pytest.raises(RequestIdReused):
        await stores.jobs.find_by_request("once", b"other")


async def test_active_jobs_are_ordered_by_priority_then_age(stores: Any) -> None:
    for number, priority, age in (("1", 0, 0), ("2", 5, 1), ("3", 5, 2), ("4", 0, 3)):
        await create_job(stores, number, priority=priority, created_at=AT - age * SECOND)
    await stores.jobs.end(JobName("p", "job-1"), JobState.CANCELLED, Outcome(False), AT)
    active = await stores.jobs.active()
    assert ["job-3", "job-2", "job-4"] == [j.name.job for j, _ in active]
    assert {"uri": "s3://b/3"} == active[0][1]


async def test_jobs_are_listed_newest_first_page_by_page(stores: Any) -> None:
    for number in ("2", "1", "4", "3"):
        await create_job(stores, number)
    first = await stores.jobs.list("p", (), 3, "")
    rest = await stores.jobs.list("p", (), 3, first.next_page_token)
    assert ["job-4", "job-3", "job-2", "job-1"] == [j.name.job for j in (*first.items, *rest.items)]


async def test_jobs_are_listed_by_state_experiment_and_training_set(stores: Any) -> None:
    await stores.runs.create_experiment(replace(EXPERIMENT, name=ExperimentName("p", "other")), "", b"", AT)
    for number, experiment, training_set in (("1", "late", "a"), ("2", "other", "a"), ("3", "late", "b' OR")):
        spec = replace(TRAIN_SPEC, experiment=experiment, training_set=training_set)
        await stores.jobs.create(replace(build.job(number), spec=spec), {}, "", b"", AT)
    await stores.jobs.mark_started(JobName("p", "job-1"), AT)

    async def found(text: str) -> str:
        """The numbers of the jobs, read page by page."""
        numbers, token = "", ""
        while True:
            page = await stores.jobs.list("p", parse_terms(text, FILTER_FIELDS), 1, token)
            numbers += "".join(j.name.job.removeprefix("job-") for j in page.items)
            token = page.next_page_token
            if not token:
                return numbers

    assert "321" == await found("")
    assert "1" == await found("state=running")
    assert "32" == await found("state!=JOB_STATE_RUNNING")
    assert "31" == await found("experiment=late")
    assert "3" == await found("training_set=b' OR")
    assert "2" == await found("experiment!=late AND state=QUEUED AND training_set=a")
    first = await stores.jobs.list("p", parse_terms("experiment=late", FILTER_FIELDS), 1, "")
    with pytest.raises(InvalidPageToken):
        await stores.jobs.list("p", (), 1, first.next_page_token)


async def test_a_job_waits_starts_and_reports_progress(stores: Any) -> None:
    job = await create_job(stores)
    await stores.jobs.set_waiting(job.name, "waiting for a free slot")
    await stores.jobs.heartbeat(job.name, EPOCH, AT)
    queued = await stores.jobs.get(job.name)
    assert {"message": "waiting for a free slot"} == queued.progress
    await stores.jobs.mark_started(job.name, AT + SECOND)
    await stores.jobs.mark_started(job.name, AT + 9 * SECOND)
    await stores.jobs.heartbeat(job.name, EPOCH, AT + 50 * SECOND)
    running = await stores.jobs.get(job.name)
    assert (JobState.RUNNING, AT + SECOND, EPOCH) == (running.state, running.started_at, running.progress)
    await stores.runs.log(job.run, [point("train_loss", 2, 0.5)], AT + 50 * SECOND)
    assert 2 == await stores.jobs.epochs_done(job.run)


async def test_a_heartbeat_of_a_job_renews_the_lease_of_its_run(stores: Any) -> None:
    # The id of a run need not follow from the id of its job.
    job = Job(JobName("p", "job-1"), TRAIN_SPEC, RunName("p", "run-other"))
    await stores.jobs.create(job, {}, "", b"", AT)
    await stores.jobs.mark_started(job.name, AT)
    await stores.jobs.heartbeat(job.name, EPOCH, AT + 50 * SECOND)
    assert [] == await stores.runs.expire(AT + 100 * SECOND, AT)
    assert ["projects/p/runs/run-other"] == await stores.runs.expire(AT + 111 * SECOND, AT)


async def test_a_job_ends_once_together_with_its_run(stores: Any) -> None:
    job = await create_job(stores)
    await stores.jobs.mark_started(job.name, AT + SECOND)
    await stores.runs.log(job.run, [point("train_loss", 2, 0.5)], AT + 50 * SECOND)
    outcome = Outcome(
        True,
        artifacts=(ARTIFACT,),
        points=(point("train_loss", 2, 9.0), point("train_loss", 3, 0.25)),
        params={"lr": "0.1"},
        code_version="c0ffee",
        environment={"torch": "2"},
    )
    end = AT + 60 * SECOND
    ends = await asyncio.gather(
        *(stores.jobs.end(job.name, JobState.SUCCEEDED, outcome, end) for _ in range(6))
    )
    assert 1 == sum(ends)
    assert not await stores.jobs.end(job.name, JobState.FAILED, Outcome(False, "X", "late"), AT)
    run, ended = await stores.runs.get_run(job.run), await stores.jobs.get(job.name)
    assert (JobState.SUCCEEDED, RunState.SUCCEEDED, "") == (ended.state, run.state, ended.error_reason)
    assert end == ended.ended_at == run.ended_at
    assert ({"train_loss": 0.25}, (ARTIFACT,), {"lr": "0.1"}) == (run.metrics, run.artifacts, run.params)
    assert ("c0ffee", {"torch": "2"}) == (run.code_version, run.environment)
    points = (await stores.runs.points(job.run, "", 9, "")).items
    assert [point("train_loss", 2, 0.5), point("train_loss", 3, 0.25)] == list(points)


async def test_a_cancel_request_is_stored_until_the_job_has_ended(stores: Any) -> None:
    job = await create_job(stores)
    requested = await stores.jobs.request_cancel(job.name)
    assert (True, JobState.QUEUED) == (requested.cancel_requested, requested.state)
    assert requested == await stores.jobs.request_cancel(job.name)
    await stores.jobs.end(job.name, JobState.CANCELLED, Outcome(False, "CANCELLED", "as requested"), AT)
    with pytest.raises(JobEnded):
        await stores.jobs.request_cancel(job.name)
    with pytest.raises(UnknownJob):
        await stores.jobs.request_cancel(JobName("p", "none"))
    run = await stores.runs.get_run(job.run)
    assert (RunState.CANCELLED, "as requested") == (run.state, run.error_message)


async def test_a_repeated_cancel_request_returns_the_job_as_it_is_now(stores: Any) -> None:
    job, other = await create_job(stores, "1"), await create_job(stores, "2")
    requested = await stores.jobs.request_cancel(job.name, "once", b"body")
    with pytest.raises(RequestIdReused):
        await stores.jobs.request_cancel(other.name, "once", b"another")
    assert requested == await stores.jobs.request_cancel(job.name, "once", b"body")
    await stores.jobs.end(job.name, JobState.CANCELLED, Outcome(False, "CANCELLED", "as requested"), AT)
    again = await stores.jobs.request_cancel(job.name, "once", b"body")
    assert JobState.CANCELLED == again.state
