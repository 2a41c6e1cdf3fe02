"""While what the trainer needs is down or hangs it says so in time; when that is back, so is the trainer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_local.postgres import Postgres
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from flywheel_trainer.recipes.artifacts import WEIGHTS
from tests.integration.trainer.peer_servers import MODEL, TRAINING_SET, Peers
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy


async def test_calls_fail_within_their_deadline_and_work_again_by_themselves(
    start_trainer: Any, trainer_settings: dict[str, str], postgres: Postgres
) -> None:
    trainer = await start_trainer(trainer_settings)
    connection, stub = trainer.stub()
    async with connection:
        create = pb.CreateExperimentRequest(parent="projects/p", experiment_id="late", request_id="one")
        made = await stub.CreateExperiment(create, timeout=10)
        read = pb.ListExperimentsRequest(parent="projects/p")
        postgres.kill()
        for call, request in ((stub.ListExperiments, read), (stub.CreateExperiment, create)):
            began = time.monotonic()
            try:
                await call(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                refusal = from_rpc_error(error)
                assert ("UNAVAILABLE", "POSTGRES_UNAVAILABLE") == (refusal.code.name, refusal.reason)
            else:
                raise AssertionError("answered without a database")
            assert time.monotonic() - began < 5
        await asyncio.to_thread(postgres.restart)

        async def back() -> bool:
            try:
                return len((await stub.ListExperiments(read, timeout=5)).experiments) == 1
            except grpc.RpcError:
                return False

        await eventually(back, within=30)
        assert made == await stub.CreateExperiment(create, timeout=5)


@pytest.mark.timeout(180)
async def test_peers_s3_and_ray_that_hang_are_named_within_the_deadline_and_queue_nothing(
    start_trainer: Any, trainer_settings: dict[str, str], peers: Peers, s3: S3, ray: Ray
) -> None:
    """It starts while S3 hangs: that delays jobs and nothing else."""
    start = f"{MODEL}/versions/1"
    weights = model_pb2.Artifact(name=WEIGHTS, size_bytes=7, sha256=hashlib.sha256(b"weights").hexdigest())
    peers.registry.versions[start] = model_pb2.ModelVersion(name=start, artifacts=[weights])
    peers.registry.files[start, WEIGHTS] = b"weights"
    async with AsyncExitStack() as stack:

        async def line(address: str) -> FaultProxy:
            host, _, port = address.rpartition(":")
            return await stack.enter_async_context(FaultProxy(host, int(port)))

        feature, registry = await line(peers.address), await line(peers.address)
        objects = await line(urlsplit(s3.endpoint).netloc)
        engine = await line(urlsplit(ray.jobs_url).netloc)
        settings = {
            "feature_address": feature.address,
            "registry_address": registry.address,
            "s3_endpoint": f"http://{objects.address}",
            "ray_address": f"http://{engine.address}",
            "ray_auth_token": ray.token,
            "max_running_jobs": "0",
        }
        objects.stall()
        trainer = await start_trainer(
            trainer_settings | {f"FLYWHEEL_TRAINER_{key.upper()}": value for key, value in settings.items()}
        )
        connection, stub = trainer.stub()
        await stack.enter_async_context(connection)
        await stub.CreateExperiment(
            pb.CreateExperimentRequest(parent="projects/default", experiment_id="late")
        )
        train = pb.TrainSpec(
            experiment="late", training_set=TRAINING_SET, tabular=pb.TabularRecipe(warm_start=start)
        )
        submission = pb.SubmitJobRequest(parent="projects/default", job=pb.Job(train=train), request_id="one")
        for hangs, reason in (
            (feature, "FEATURE_UNAVAILABLE"),
            (registry, "REGISTRY_UNAVAILABLE"),
            (objects, "S3_UNAVAILABLE"),
        ):
            hangs.stall()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.SubmitJob(submission, timeout=2)
            refusal = from_rpc_error(caught.value)
            assert ("UNAVAILABLE", reason) == (refusal.code.name, refusal.reason)
            hangs.heal()
        jobs = await stub.ListJobs(pb.ListJobsRequest(parent="projects/default"), timeout=5)
        assert not jobs.jobs
        job = (await stub.SubmitJob(submission, timeout=20)).job
        objects.stall()
        engine.stall()
        watched = stub.WatchJob(pb.WatchJobRequest(name=job.name), timeout=2)
        assert job_pb2.JOB_STATE_QUEUED == (await watched.read()).job.state
        watched.cancel()
        cancelled = await stub.CancelJob(pb.CancelJobRequest(name=job.name, request_id="two"), timeout=2)
        assert (job_pb2.JOB_STATE_QUEUED, True) == (cancelled.job.state, cancelled.job.cancel_requested)
        objects.heal()
        engine.heal()

        async def gone() -> bool:
            found = await stub.GetJob(pb.GetJobRequest(name=job.name), timeout=5)
            return bool(found.job.state == job_pb2.JOB_STATE_CANCELLED)

        await eventually(gone, within=60)
