"""Contract tests for job stores: memory and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from flywheel_common.errors import InvalidArgument
from flywheel_feature.fakes.jobs import MemoryJobs
from flywheel_feature.jobs.model import Job, JobState, Progress
from flywheel_feature.jobs.ports import MAX_ATTEMPTS, JobStore
from flywheel_feature.store.postgres.jobs import PostgresJobs
from tests.support.eventually import eventually

AT = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job("p", "a", "BUILD", b"\x00request", AT, training_set="projects/p/trainingSets/t")
MATERIALIZE = Job("p", "a", "MATERIALIZE", b"1", AT)
OTHER = "SKEW_CHECK"


@pytest.fixture
def jobs(backing: str, request: pytest.FixtureRequest) -> JobStore:
    return MemoryJobs() if backing == "memory" else PostgresJobs(request.getfixturevalue("pool"))


async def create(jobs: JobStore, job: Job, request_id: str = "") -> Job:
    return await jobs.create(job, request_id, b"hash of " + job.request)


async def claimed(jobs: JobStore, owner: str = "one", lease_seconds: float = 60.0) -> Job:
    job = await jobs.claim(owner, ["BUILD"], lease_seconds)
    assert job is not None
    return job


async def claimed_after_expiry(jobs: JobStore, owner: str) -> Job:
    """Claim the job as soon as the lease of its owner has expired."""

    async def claim() -> Job | None:
        return await jobs.claim(owner, ["BUILD"], 0.0)

    found = await eventually(claim, within=5)
    assert found is not None
    return found


async def test_new_job_is_queued_and_found_only_in_its_project(jobs: JobStore) -> None:
    made = await create(jobs, MATERIALIZE)
    assert ("p", "MATERIALIZE", JobState.QUEUED) == (made.project, made.kind, made.state)
    assert made == await jobs.get("p", made.id)
    assert await jobs.get("q", made.id) is None
    assert await jobs.get("p", "none") is None


async def test_job_reads_back(jobs: JobStore) -> None:
    assert JOB == await jobs.create(JOB, "", b"h")
    assert JOB == await jobs.get("p", "a")


async def test_equal_request_ids_make_one_job_and_other_bodies_are_refused(jobs: JobStore) -> None:
    made = await asyncio.gather(*(create(jobs, replace(MATERIALIZE, id=f"j{i}"), "once") for i in range(20)))
    assert 1 == len({j.id for j in made})
    with pytest.raises(InvalidArgument) as reused:
        await create(jobs, replace(MATERIALIZE, id="other", request=b"2"), "once")
    assert "REQUEST_ID_REUSED" == reused.value.reason
    elsewhere = [
        await create(jobs, replace(MATERIALIZE, id="of-q", project="q"), "once"),
        await create(jobs, replace(MATERIALIZE, id="of-kind", kind=OTHER), "once"),
        *[await create(jobs, replace(MATERIALIZE, id=f"no-id-{i}")) for i in range(2)],
    ]
    assert 5 == len({j.id for j in (made[0], *elsewhere)})
    assert 3 == len(await jobs.list("p", kind="MATERIALIZE", state="", before="", limit=99))


async def test_repeated_request_is_found_before_creation(jobs: JobStore) -> None:
    assert await jobs.repeated("p", "BUILD", "once", b"h") is None
    made = await jobs.create(JOB, "once", b"h")
    await jobs.create(replace(JOB, id="b"), "", b"h")
    assert made == await jobs.repeated("p", "BUILD", "once", b"h")
    with pytest.raises(InvalidArgument) as reused:
        await jobs.repeated("p", "BUILD", "once", b"another")
    assert "REQUEST_ID_REUSED" == reused.value.reason
    for project, kind, request_id in (("q", "BUILD", "once"), ("p", "CHECK", "once"), ("p", "BUILD", "")):
        assert await jobs.repeated(project, kind, request_id, b"h") is None
    assert 2 == len(await jobs.list("p", kind="", state="", before="", limit=99))


async def test_concurrent_claims_get_different_jobs_oldest_first(jobs: JobStore) -> None:
    for i in range(6):
        await jobs.create(replace(JOB, id=f"j{i}", created_at=AT - timedelta(seconds=i)), "", b"h")
    await jobs.create(replace(JOB, id="k", kind="CHECK"), "", b"h")
    first = await claimed(jobs)
    assert ("j5", JobState.RUNNING, 1) == (first.id, first.state, first.attempt)
    rest = await asyncio.gather(*(jobs.claim(f"o{i}", ["BUILD"], 60.0) for i in range(9)))
    assert [f"j{i}" for i in range(5)] == sorted(j.id for j in rest if j is not None)
    check = await jobs.claim("one", ["BUILD", "CHECK"], 60.0)
    assert check is not None and "k" == check.id


async def test_only_the_owner_of_a_job_writes_to_it(jobs: JobStore) -> None:
    await jobs.create(JOB, "", b"h")
    job = await claimed(jobs)
    progress = Progress(3, 9, "rows", "working")
    assert await jobs.heartbeat(job, "one", progress, 60.0) is False
    assert await jobs.heartbeat(job, "two", Progress(), 60.0) is None
    await jobs.save_checkpoint(job, "one", b"here")
    for owner in ("two", ""):
        await jobs.save_checkpoint(job, owner, b"elsewhere")
        await jobs.requeue(job, owner, 0.0)
        await jobs.finish(replace(job, state=JobState.FAILED), owner)
    found = await jobs.get("p", "a")
    assert replace(job, progress=progress, checkpoint=b"here") == found
    done = replace(
        job,
        state=JobState.SUCCEEDED,
        progress=Progress(9, 9),
        ended_at=AT,
        result={"rows": 9, "list": [1, "x"]},
    )
    await jobs.finish(done, "one")
    assert replace(done, checkpoint=b"here") == await jobs.get("p", "a")
    assert await jobs.heartbeat(job, "one", progress, 60.0) is None
    assert await jobs.claim("two", ["BUILD"], 60.0) is None


async def test_job_with_expired_lease_resumes_from_its_checkpoint(jobs: JobStore) -> None:
    await jobs.create(JOB, "", b"h")
    job = await claimed(jobs, lease_seconds=0.05)
    await jobs.save_checkpoint(job, "one", b"here")
    again = await claimed_after_expiry(jobs, "two")
    assert (b"here", 2, JobState.RUNNING) == (again.checkpoint, again.attempt, again.state)
    await jobs.finish(replace(job, state=JobState.SUCCEEDED, ended_at=AT), "one")
    found = await jobs.get("p", "a")
    assert found is not None and JobState.RUNNING == found.state


async def test_job_that_kills_every_process_is_lost(jobs: JobStore) -> None:
    await jobs.create(JOB, "", b"h")
    await claimed(jobs, lease_seconds=0.0)
    for _ in range(MAX_ATTEMPTS - 1):
        await claimed_after_expiry(jobs, "next")

    async def lost() -> bool:
        assert await jobs.claim("last", ["BUILD"], 60.0) is None
        found = await jobs.get("p", "a")
        return found is not None and found.state is JobState.LOST

    await eventually(lost, within=5)
    found = await jobs.get("p", "a")
    assert found is not None
    assert "JOB_LOST" == found.error_reason
    assert found.ended_at is not None


async def test_requeued_job_waits_for_its_delay(jobs: JobStore) -> None:
    await jobs.create(JOB, "", b"h")
    job = await claimed(jobs)
    await jobs.requeue(job, "one", 3600.0)
    assert await jobs.claim("two", ["BUILD"], 60.0) is None
    found = await jobs.get("p", "a")
    assert found is not None and JobState.QUEUED == found.state
    await jobs.create(replace(JOB, id="b"), "", b"h")
    second = await claimed(jobs)
    await jobs.requeue(second, "one", 0.0)
    assert 2 == (await claimed(jobs, "two")).attempt


async def test_queued_job_is_cancelled_immediately(jobs: JobStore) -> None:
    made = await create(jobs, MATERIALIZE)
    cancelled = await jobs.request_cancel("p", made.id)
    assert cancelled is not None
    assert (JobState.CANCELLED, True) == (cancelled.state, cancelled.ended_at is not None)
    assert cancelled == await jobs.get("p", made.id) == await jobs.request_cancel("p", made.id)
    assert await jobs.request_cancel("p", "none") is None
    assert await jobs.request_cancel("q", made.id) is None


async def test_cancelled_job_is_not_claimed_and_a_running_one_is_notified(jobs: JobStore) -> None:
    await jobs.create(JOB, "", b"h")
    await jobs.request_cancel("p", "a")
    assert await jobs.claim("one", ["BUILD"], 60.0) is None
    await jobs.create(replace(JOB, id="b"), "", b"h")
    running = await claimed(jobs)
    cancelling = await jobs.request_cancel("p", "b")
    assert cancelling is not None and JobState.RUNNING == cancelling.state
    assert await jobs.heartbeat(running, "one", Progress(), 60.0) is True
    await jobs.finish(replace(running, state=JobState.SUCCEEDED, ended_at=AT), "one")
    after = await jobs.request_cancel("p", "b")
    assert after is not None and JobState.SUCCEEDED == after.state


async def test_jobs_are_listed_newest_first_by_kind_and_state(jobs: JobStore) -> None:
    kinds = ["MATERIALIZE", OTHER, "MATERIALIZE"]
    made = [await create(jobs, replace(MATERIALIZE, id=f"j{i}", kind=kind)) for i, kind in enumerate(kinds)]
    await create(jobs, replace(MATERIALIZE, project="q"))
    j0, j1, j2 = (j.id for j in made)
    await jobs.request_cancel("p", j0)

    async def ids(kind: str = "", state: str = "", before: str = "", limit: int = 9) -> list[str]:
        return [j.id for j in await jobs.list("p", kind=kind, state=state, before=before, limit=limit)]

    assert [j2, j1, j0] == await ids()
    assert [j2, j0] == await ids("MATERIALIZE")
    assert [j0] == await ids(state="CANCELLED")
    assert [j2] == await ids("MATERIALIZE", "QUEUED")
    assert [j1] == await ids(before=j2, limit=1)
    assert [j2, j1] == await ids(limit=2)


async def test_ended_jobs_of_all_projects_are_listed_by_end_time(jobs: JobStore) -> None:
    """The store sets the end time of jobs that it ends itself: cancelled queued jobs and lost jobs."""
    for name, project in (("late", "p"), ("early", "q"), ("before", "p"), ("open", "p")):
        await jobs.create(replace(JOB, id=name, project=project), "", b"h")
    await jobs.create(replace(JOB, id="other", kind="CHECK"), "", b"h")
    ends = {"late": AT + timedelta(seconds=2), "early": AT, "before": AT - timedelta(microseconds=1)}
    for _ in range(4):
        job = await claimed(jobs)
        if job.id in ends:
            await jobs.finish(replace(job, state=JobState.FAILED, ended_at=ends[job.id]), "one")
    await jobs.request_cancel("p", "other")
    await jobs.create(replace(JOB, id="cancelled"), "", b"h")
    await jobs.request_cancel("p", "cancelled")
    found = await jobs.ended_since("BUILD", AT)
    assert ["early", "late", "cancelled"] == [j.id for j in found]
    assert [JobState.FAILED, JobState.FAILED, JobState.CANCELLED] == [j.state for j in found]
    assert ["other"] == [j.id for j in await jobs.ended_since("CHECK", AT)]
    assert [] == await jobs.ended_since("BUILD", datetime.now(UTC) + timedelta(hours=1))
