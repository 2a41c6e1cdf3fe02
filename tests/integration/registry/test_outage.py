"""While PostgreSQL is down the registry says so in time; when it is back, so is the registry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import grpc

from flywheel_common.testing import FaultProxy
from flywheel_common.testing.eventually import eventually
from flywheel_local.postgres import Postgres
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.testing import Story, refused, running


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


async def test_a_database_that_stalls_is_said_within_the_deadline_too(
    settings: Callable[..., Any], database: str
) -> None:
    address = urlsplit(database)
    assert address.port
    async with FaultProxy("127.0.0.1", address.port) as proxy:
        dsn = database.replace(f":{address.port}/", f":{proxy.port}/")
        async with running(settings(postgres_dsn=dsn)) as stub:
            story = Story(stub)
            await story.create(owner="ann")
            read = pb.GetModelRequest(name=story.model)
            write = pb.CreateModelRequest(parent="projects/default", model_id="other", request_id="one")
            for call, request in ((stub.GetModel, read), (stub.CreateModel, write)):
                proxy.stall()
                with refused("UNAVAILABLE", "POSTGRES_UNAVAILABLE"):
                    await call(request, timeout=2)
                proxy.heal()

                async def back(call: Any = call, request: Any = request) -> bool:
                    try:
                        await call(request, timeout=5)
                    except grpc.RpcError:
                        return False
                    return True

                await eventually(back, within=20)
