"""Jobs and freshness at the gRPC edge: conversion, request ids, filters, paging, status codes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import flywheel as fw
from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_common.postgres.pool import Pool
from flywheel_feature.jobs.runner import Job, JobState, Progress
from flywheel_feature.store.postgres.jobs import PostgresJobs
from flywheel_feature.store.postgres.materialized import PostgresMaterialized
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import job_pb2

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """A service that runs no jobs, so that they stay queued."""
    return {**environment, "FLYWHEEL_FEATURE_JOB_CONCURRENCY": "0"}


async def materialize(client: fw.Client, project: str = "p", limit: int = 1, request_id: str = "") -> pb.Job:
    request = pb.MaterializeViewRequest(
        parent=f"projects/{project}", rows_per_second=limit, request_id=request_id
    )
    return (await client.feature.MaterializeView(request)).job


async def check_skew(client: fw.Client, request_id: str = "") -> pb.Job:
    request = pb.CheckSkewRequest(
        parent="projects/p", predictions_uri="s3://bucket/log/", request_id=request_id
    )
    return (await client.feature.CheckSkew(request)).job


async def read(client: fw.Client, name: str) -> pb.Job:
    return (await client.feature.GetJob(pb.GetJobRequest(name=name))).job


async def test_new_job_is_queued_and_found_in_its_project(client: fw.Client) -> None:
    made = await materialize(client)
    assert made.name.startswith("projects/p/jobs/")
    assert ("MATERIALIZE", job_pb2.JOB_STATE_QUEUED) == (made.kind, made.state)
    assert made.HasField("created_at")
    assert not made.HasField("ended_at")
    assert made == await read(client, made.name)
    for name in (made.name.replace("projects/p", "projects/q"), "projects/p/jobs/none"):
        with pytest.raises(NotFound) as absent:
            await read(client, name)
        assert "UNKNOWN_JOB" == absent.value.reason


async def test_progress_and_error_of_a_job_read_back(client: fw.Client, pool: Pool) -> None:
    jobs = PostgresJobs(pool)
    stored = Job("p", "a", "MATERIALIZE", b"", AT, training_set="projects/p/trainingSets/t")
    await jobs.create(stored, "", b"h")
    claimed = await jobs.claim("owner", ["MATERIALIZE"], 60.0)
    assert claimed is not None
    failed = replace(
        claimed,
        state=JobState.FAILED,
        progress=Progress(3, 9, "rows", "reading"),
        ended_at=AT + timedelta(seconds=5),
        error_reason="SOURCE_MISMATCH",
        error_message="The files have no column.",
    )
    await jobs.finish(failed, "owner")
    expected = pb.Job(
        name="projects/p/jobs/a",
        kind="MATERIALIZE",
        state=job_pb2.JOB_STATE_FAILED,
        progress=job_pb2.JobProgress(done=3, total=9, unit="rows", message="reading"),
        error_reason="SOURCE_MISMATCH",
        error_message="The files have no column.",
        training_set="projects/p/trainingSets/t",
    )
    expected.created_at.FromDatetime(AT)
    expected.ended_at.FromDatetime(AT + timedelta(seconds=5))
    assert expected == await read(client, "projects/p/jobs/a")
    with pytest.raises(FailedPrecondition) as ended:
        await client.feature.CancelJob(pb.CancelJobRequest(name="projects/p/jobs/a"))
    assert "JOB_ENDED" == ended.value.reason


async def test_equal_request_ids_make_one_job(client: fw.Client) -> None:
    made = await asyncio.gather(*(materialize(client, request_id="once") for _ in range(20)))
    assert 1 == len({job.name for job in made})
    with pytest.raises(InvalidArgument) as reused:
        await materialize(client, limit=2, request_id="once")
    assert "REQUEST_ID_REUSED" == reused.value.reason
    others = [
        await materialize(client, project="q", request_id="once"),
        await check_skew(client, request_id="once"),
        *[await materialize(client) for _ in range(2)],
    ]
    assert 5 == len({job.name for job in (made[0], *others)})
    listed = await client.feature.ListJobs(pb.ListJobsRequest(parent="projects/p", filter="kind=MATERIALIZE"))
    assert 3 == len(listed.jobs)


async def test_queued_job_is_cancelled_at_once(client: fw.Client) -> None:
    made = await materialize(client)
    cancelled = (await client.feature.CancelJob(pb.CancelJobRequest(name=made.name))).job
    assert (job_pb2.JOB_STATE_CANCELLED, True) == (cancelled.state, cancelled.HasField("ended_at"))
    assert cancelled == await read(client, made.name)
    assert cancelled == (await client.feature.CancelJob(pb.CancelJobRequest(name=made.name))).job
    for name in (made.name.replace("projects/p", "projects/q"), "projects/p/jobs/none"):
        with pytest.raises(NotFound) as absent:
            await client.feature.CancelJob(pb.CancelJobRequest(name=name))
        assert "UNKNOWN_JOB" == absent.value.reason


async def test_jobs_are_listed_newest_first_with_filters_and_pages(client: fw.Client) -> None:
    j0, j1, j2 = (await materialize(client), await check_skew(client), await materialize(client))
    await materialize(client, project="q")
    await client.feature.CancelJob(pb.CancelJobRequest(name=j0.name))

    async def names(filter_terms: str = "", **fields: Any) -> list[str]:
        request = pb.ListJobsRequest(parent="projects/p", filter=filter_terms, **fields)
        return [job.name for job in (await client.feature.ListJobs(request)).jobs]

    assert [j2.name, j1.name, j0.name] == await names()
    assert [j2.name, j0.name] == await names("kind=MATERIALIZE")
    assert [j0.name] == await names("state=CANCELLED")
    assert [j2.name] == await names("kind=MATERIALIZE state=QUEUED")
    first = await client.feature.ListJobs(pb.ListJobsRequest(parent="projects/p", page_size=2))
    assert [j2.name, j1.name] == [job.name for job in first.jobs]
    assert [j0.name] == await names(page_size=2, page_token=first.next_page_token)


async def test_watermark_of_a_batch_view_is_its_newest_event_time(client: fw.Client, pool: Pool) -> None:
    place = fw.Entity("place", {"code": fw.STRING})
    schema = {"code": fw.STRING, "at": fw.TIMESTAMP, "height": fw.FLOAT64}
    heights = fw.ParquetSource("heights", schema, timestamp="at", uri="s3://nowhere/heights/")
    views = [fw.BatchView(name, place, heights, {"height": fw.FLOAT64}) for name in ("facts", "others")]
    await client.apply(fw.compile_definitions(views, "default"))
    await PostgresMaterialized(pool).done("default", "facts", 1, 21_000_000, 20_000_000)
    answer = await client.feature.GetFreshness(pb.GetFreshnessRequest(parent="projects/default"))
    fresh = {f.name.partition("views/")[2]: f for f in answer.freshness if "/views/" in f.name}
    (facts,) = [f for name, f in fresh.items() if name.startswith("facts")]
    (others,) = [f for name, f in fresh.items() if name.startswith("others")]
    assert (20_000_000, False) == (facts.watermark.ToMicroseconds(), others.HasField("watermark"))
