"""Background tasks of the trainer: after unexpected exceptions, and when a job is submitted."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
from prometheus_client import CollectorRegistry

from flywheel_common.clock import SystemClock
from flywheel_common.ids import SequentialIds
from flywheel_protos.trainer.v1 import trainer_pb2_grpc
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.server import wire
from tests.support.background_faults import Faults
from tests.support.builders.trainer import AT, EXPERIMENT, TRAINING_SET
from tests.support.builders.trainer_requests import submit_job
from tests.support.eventually import eventually
from tests.support.servers.trainer import memory_ports, memory_settings


async def test_each_background_task_works_again_after_an_unexpected_error() -> None:
    faults = Faults()
    async with AsyncExitStack() as stack:
        server = await wire(
            memory_settings(job_poll_seconds=0.05, pipeline_poll_seconds=0.05, lease_check_seconds=0.05),
            stack,
            faults.wrap(memory_ports()),
            clock=SystemClock(),
            ids=SequentialIds("n"),
            prometheus=CollectorRegistry(),
        )
        faults.watch(server)
        running = asyncio.create_task(server.run_until_signal())
        try:
            await faults.overcome()
        finally:
            server.request_stop()
            await running


async def test_a_submitted_job_does_not_wait_for_the_next_poll() -> None:
    ports = memory_ports()
    ports.feature.known[TRAINING_SET] = TrainingSet(TRAINING_SET, "s3://b/t", (), 100, "f" * 64, "")
    await ports.runs.create_experiment(EXPERIMENT, "", b"", AT)
    async with AsyncExitStack() as stack:
        server = await wire(
            memory_settings(job_poll_seconds=3600),
            stack,
            ports,
            clock=SystemClock(),
            ids=SequentialIds("n"),
            prometheus=CollectorRegistry(),
        )
        running = asyncio.create_task(server.run_until_signal())
        try:
            await eventually(lambda: server.port)
            connection = await stack.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
            )
            stub = trainer_pb2_grpc.TrainerServiceStub(connection)
            for _ in range(2):  # the first poll is at the start, and may find the first job
                answer = await stub.SubmitJob(submit_job(), wait_for_ready=True)
                attempt = f"{answer.job.name.rpartition('/')[2]}-1"
                await eventually(lambda: attempt in ports.engine.started)  # noqa: B023 - awaited here
        finally:
            server.request_stop()
            await running
