"""Two replicas of the trainer on one database: one supervises, and each takes over what the other leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually
from tests.support.peers.trainer import FEATURE_SET, MODEL, TRAINING_SET, landed_spine
from tests.support.ports import free_port

pytestmark = [pytest.mark.timeout(240)]
PARENT = "projects/default"
TAKEOVER_SECONDS = 40.0
"""The leases of a dead replica last 10 s."""

Start = Callable[[dict[str, str]], Awaitable[Any]]


@pytest.fixture
async def replicas(
    trainer_settings: dict[str, str], with_peers: dict[str, str], start_trainer: Start
) -> tuple[Any, Any]:
    """Two trainers that start no jobs on an engine."""
    settings = trainer_settings | with_peers | {"FLYWHEEL_TRAINER_MAX_RUNNING_JOBS": "0"}
    first = await start_trainer(settings)
    second = await start_trainer(
        settings | {"FLYWHEEL_TRAINER_LISTEN": f"127.0.0.1:{free_port()}"},
    )
    async with first.stub() as stub:
        await stub.CreateExperiment(pb.CreateExperimentRequest(parent=PARENT, experiment_id="late"))
    return first, second


async def supervisor(database: str) -> tuple[str, int]:
    """(holder, fencing token) of the lease of the supervisor."""
    connection = await asyncpg.connect(database)
    try:
        row = await connection.fetchrow("SELECT holder, token FROM lease WHERE name = 'job-supervisor'")
        return row["holder"], row["token"]
    finally:
        await connection.close()


async def cancels_a_job(stub: Any, request_id: str) -> None:
    """A queued job is ended by the supervisor alone."""
    train = pb.TrainSpec(experiment="late", training_set=TRAINING_SET)
    job = (
        await stub.SubmitJob(
            pb.SubmitJobRequest(parent=PARENT, job=pb.Job(train=train), request_id=request_id)
        )
    ).job
    await stub.CancelJob(pb.CancelJobRequest(name=job.name))

    async def cancelled() -> bool:
        found = (await stub.GetJob(pb.GetJobRequest(name=job.name))).job
        return bool(found.state == job_pb2.JOB_STATE_CANCELLED)

    await eventually(cancelled, within=TAKEOVER_SECONDS, every=0.2)


async def test_the_other_replica_supervises_after_the_death_of_the_first(
    replicas: tuple[Any, Any], database: str
) -> None:
    first, second = replicas
    async with second.stub() as stub:
        await cancels_a_job(stub, "one")
        holder, token = await supervisor(database)
        first.kill()  # it started first and took the lease
        await cancels_a_job(stub, "two")
        successor, next_token = await supervisor(database)
    assert (successor != holder, next_token > token) == (True, True)


async def test_a_replica_that_was_stopped_for_a_while_does_not_supervise_again(
    replicas: tuple[Any, Any], database: str
) -> None:
    first, second = replicas
    holder, token = await supervisor(database)
    async with second.stub() as stub:
        with first.paused():
            await cancels_a_job(stub, "one")
            successor = await supervisor(database)
        await cancels_a_job(stub, "two")
        assert successor == await supervisor(database)
    assert (successor[0] != holder, successor[1] > token) == (True, True)


async def waits_for_its_training_set(trainer: Any, peers: Any) -> pb.PipelineRun:
    """A run that this trainer started, in a step that has not ended."""
    peers.feature.running_reads = 10**9
    async with trainer.stub() as stub:
        run: pb.PipelineRun = (await stub.StartPipelineRun(pipeline_request())).pipeline_run
        await eventually(lambda: peers.requests.calls["GetJob"] >= 3, within=60, every=0.1)
    return run


async def waiting_goes_on(peers: Any) -> None:
    """Wait until a replica has asked for the training set again."""
    reads = peers.requests.calls["GetJob"]
    await eventually(lambda: peers.requests.calls["GetJob"] >= reads + 3, within=TAKEOVER_SECONDS, every=0.1)


async def test_the_pipeline_of_a_dead_replica_continues_on_another(
    replicas: tuple[Any, Any], peers: Any
) -> None:
    """It is continued once, after the step that was finished, with each effect once."""
    first, second = replicas
    run = await waits_for_its_training_set(first, peers)
    first.kill()
    async with second.stub() as stub:
        # The second replica may have started the run itself: then nothing is left behind by the first.
        await waiting_goes_on(peers)
        peers.feature.failure = ("TOO_LARGE", "too many rows")
        peers.feature.running_reads = 0

        async def ended() -> Any:
            found = (await stub.GetPipelineRun(pb.GetPipelineRunRequest(name=run.name))).pipeline_run
            return found if found.HasField("ended_at") else None

        found = await eventually(ended, within=TAKEOVER_SECONDS, every=0.2)
    assert (job_pb2.JOB_STATE_FAILED, "TRAINING_SET_FAILED") == (found.state, found.error_reason)
    assert 1 == peers.requests.effects["BuildTrainingSet"]
    assert [] == peers.requests.conflicts


async def test_a_replica_that_lost_its_pipeline_while_stopped_does_not_end_it(
    replicas: tuple[Any, Any], peers: Any
) -> None:
    """For a while both replicas run the same step."""
    first, second = replicas
    run = await waits_for_its_training_set(first, peers)
    with first.paused():
        await waiting_goes_on(peers)
    peers.feature.running_reads = 0
    async with second.stub() as stub:

        async def jobs() -> Any:
            return (await stub.ListJobs(pb.ListJobsRequest(parent=PARENT))).jobs

        (job,) = await eventually(jobs, within=TAKEOVER_SECONDS, every=0.2)
        assert run.name == job.pipeline_run
        await asyncio.sleep(3)
        found = (await stub.GetPipelineRun(pb.GetPipelineRunRequest(name=run.name))).pipeline_run
        assert (job_pb2.JOB_STATE_RUNNING, "") == (found.state, found.error_reason)
        assert 1 == len(await jobs())
        # A job of a pipeline run is cancelled in the transaction that cancels the run.
        await stub.CancelPipelineRun(pb.CancelPipelineRunRequest(name=run.name))

        async def ends() -> bool:
            (found,) = await jobs()
            return bool(found.state == job_pb2.JOB_STATE_CANCELLED)

        await eventually(ends, within=TAKEOVER_SECONDS, every=0.2)
    assert 1 == peers.requests.effects["BuildTrainingSet"]


def pipeline_request() -> pb.StartPipelineRunRequest:
    train = pb.TrainSpec(experiment=f"{PARENT}/experiments/late", workers=1)
    spec = pb.PipelineSpec(model=MODEL, feature_set=FEATURE_SET, spine=landed_spine(), train=train)
    return pb.StartPipelineRunRequest(parent=PARENT, spec=spec, request_id="once")
