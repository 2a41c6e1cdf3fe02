"""While PostgreSQL is down the registry says so in time; when it is back, so is the registry."""

from __future__ import annotations

import asyncio
import time

import grpc

from flywheel_common.testing.eventually import eventually
from flywheel_local.postgres import Postgres
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.testing import Story, refused


async def test_calls_fail_within_their_deadline_and_work_again_by_themselves(
    story: Story, postgres: Postgres
) -> None:
    await story.create(owner="ann")
    read = pb.GetModelRequest(name=story.model)
    write = pb.CreateModelRequest(parent="projects/default", model_id="other", request_id="one")
    postgres.kill()
    for call, request in ((story.stub.GetModel, read), (story.stub.CreateModel, write)):
        began = time.monotonic()
        with refused("UNAVAILABLE", "POSTGRES_UNAVAILABLE") as refusal:
            await call(request, timeout=5)
        assert time.monotonic() - began < 5
        assert len(refusal.message) > 15
    await asyncio.to_thread(postgres.restart)

    async def back() -> bool:
        try:
            return (await story.stub.GetModel(read, timeout=5)).model.owner == "ann"
        except grpc.RpcError:
            return False

    await eventually(back, within=20)
    assert (await story.stub.CreateModel(write, timeout=5)).model.name == "projects/default/models/other"
