"""While PostgreSQL is down the trainer says so in time; when it is back, so is the trainer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc

from flywheel_common.grpc_channel import from_rpc_error
from flywheel_common.testing.eventually import eventually
from flywheel_local.postgres import Postgres
from flywheel_protos.trainer.v1 import trainer_pb2 as pb


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
