"""While a dependency is down or hangs, calls fail before their deadline and name it."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_job.artifacts import WEIGHTS
from flywheel_local.postgres import Postgres
from flywheel_local.ray import Ray
from flywheel_local.s3 import S3
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.peers.trainer import MODEL, TRAINING_SET, Peers


async def test_calls_fail_before_their_deadline_while_postgres_is_down(
    start_trainer: Any, trainer_settings: dict[str, str], postgres: Postgres
) -> None:
    trainer = await start_trainer(trainer_settings)
    async with trainer.stub() as stub:
        create = pb.CreateExperimentRequest(parent="projects/p", experiment_id="late", request_id="one")
        created = await stub.CreateExperiment(create, timeout=10)
        read = pb.ListExperimentsRequest(parent="projects/p")
        postgres.kill()
        for call, request in ((stub.ListExperiments, read), (stub.CreateExperiment, create)):
            try:
                await call(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                found = from_rpc_error(error)
                assert ("UNAVAILABLE", "POSTGRES_UNAVAILABLE") == (found.code.name, found.reason)
            else:
                raise AssertionError("the call succeeded without a database")
        await asyncio.to_thread(postgres.restart)

        async def works_again() -> bool:
            try:
                return len((await stub.ListExperiments(read, timeout=5)).experiments) == 1
            except grpc.RpcError:
                return False

        await eventually(works_again, within=30)
        assert created == await stub.CreateExperiment(create, timeout=5)


@pytest.mark.timeout(180)
async def test_hanging_dependencies_are_named_before_the_deadline(
    start_trainer: Any, trainer_settings: dict[str, str], peers: Peers, s3: S3, ray: Ray
) -> None:
    """The trainer starts although S3 hangs, which delays jobs only."""
    start = f"{MODEL}/versions/1"
    weights = model_pb2.Artifact(name=WEIGHTS, size_bytes=7, sha256=hashlib.sha256(b"weights").hexdigest())
    peers.registry.versions[start] = model_pb2.ModelVersion(name=start, artifacts=[weights])
    peers.registry.files[start, WEIGHTS] = b"weights"
    async with AsyncExitStack() as stack:

        async def proxy_of(address: str) -> FaultProxy:
            host, _, port = address.rpartition(":")
            return await stack.enter_async_context(FaultProxy(host, int(port)))

        feature, registry = await proxy_of(peers.address), await proxy_of(peers.address)
        objects = await proxy_of(urlsplit(s3.endpoint).netloc)
        engine = await proxy_of(urlsplit(ray.jobs_url).netloc)
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
        stub = await stack.enter_async_context(trainer.stub())
        await stub.CreateExperiment(
            pb.CreateExperimentRequest(parent="projects/default", experiment_id="late")
        )
        train = pb.TrainSpec(
            experiment="late", training_set=TRAINING_SET, tabular=pb.TabularRecipe(warm_start=start)
        )
        submission = pb.SubmitJobRequest(parent="projects/default", job=pb.Job(train=train), request_id="one")
        for proxy, reason in (
            (feature, "FEATURE_UNAVAILABLE"),
            (registry, "REGISTRY_UNAVAILABLE"),
            (objects, "S3_UNAVAILABLE"),
        ):
            proxy.stall()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.SubmitJob(submission, timeout=2)
            found = from_rpc_error(caught.value)
            assert ("UNAVAILABLE", reason) == (found.code.name, found.reason)
            proxy.heal()
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

        async def is_cancelled() -> bool:
            found = await stub.GetJob(pb.GetJobRequest(name=job.name), timeout=5)
            return bool(found.job.state == job_pb2.JOB_STATE_CANCELLED)

        await eventually(is_cancelled, within=60)
