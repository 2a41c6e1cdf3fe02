"""While PostgreSQL or S3 is down or hangs, calls fail within their deadline and recover by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import grpc

from flywheel_local.postgres import Postgres
from flywheel_local.s3 import S3
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from tests.support.builders.onnx_models import constant_half
from tests.support.builders.registry import ModelClient
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.servers.registry import refused, running_registry


async def test_calls_recover_after_postgres_was_down(client: ModelClient, postgres: Postgres) -> None:
    await client.create(owner="ann")
    read = pb.GetModelRequest(name=client.model)
    write = pb.CreateModelRequest(parent="projects/default", model_id="other", request_id="one")
    postgres.kill()
    for call, request in ((client.stub.GetModel, read), (client.stub.CreateModel, write)):
        with refused("UNAVAILABLE", "POSTGRES_UNAVAILABLE") as refusal:
            await call(request, timeout=5)
        assert len(refusal.message) > 15
    await asyncio.to_thread(postgres.restart)

    async def back() -> bool:
        try:
            return (await client.stub.GetModel(read, timeout=5)).model.owner == "ann"
        except grpc.RpcError:
            return False

    await eventually(back, within=20)
    assert (await client.stub.CreateModel(write, timeout=5)).model.name == "projects/default/models/other"


async def test_calls_fail_within_their_deadline_while_postgres_hangs(
    settings: Callable[..., Any], database: str
) -> None:
    address = urlsplit(database)
    assert address.port
    async with FaultProxy("127.0.0.1", address.port) as proxy:
        dsn = database.replace(f":{address.port}/", f":{proxy.port}/")
        async with running_registry(settings(postgres_dsn=dsn)) as stub:
            client = ModelClient(stub)
            await client.create(owner="ann")
            read = pb.GetModelRequest(name=client.model)
            shared = pb.ListModelVersionsRequest(parent=client.model, filter="stage=PRODUCTION")
            write = pb.CreateModelRequest(parent="projects/default", model_id="other", request_id="one")
            for call, request in (
                (stub.GetModel, read),
                (stub.ListModelVersions, shared),
                (stub.CreateModel, write),
            ):
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


async def test_only_artifact_calls_fail_while_s3_hangs(settings: Callable[..., Any], s3: S3) -> None:
    address = urlsplit(s3.endpoint)
    assert address.hostname and address.port
    content = constant_half("x" * 20_000_000)  # more than one part, and than the buffers on the way hold
    async with (
        FaultProxy(address.hostname, address.port) as proxy,
        running_registry(settings(s3_endpoint=f"http://{proxy.address}")) as stub,
    ):
        client = ModelClient(stub)
        await client.create(owner="ann")
        proxy.stall()
        version = await client.version(content, upload=False)
        for _ in range(2):
            with refused("UNAVAILABLE", "S3_UNAVAILABLE"):
                await client.upload(version.name, content, timeout=2)
            read = await stub.GetModelVersion(pb.GetModelVersionRequest(name=version.name), timeout=2)
            assert read.model_version.artifact_state == model_pb2.ARTIFACT_STATE_PENDING
        proxy.heal()
        uploaded = await client.upload(version.name, content, timeout=60)
        assert uploaded.artifact_state == model_pb2.ARTIFACT_STATE_READY
        proxy.stall()
        with refused("UNAVAILABLE", "S3_UNAVAILABLE"):
            await client.download(version.name, timeout=2)
        with refused("UNAVAILABLE", "S3_UNAVAILABLE"):
            await client.upload(version.name, content, timeout=2)
        assert (await client.promote(version.name)).passed, "calls that need no bytes still work"
        proxy.heal()
        assert await client.download(version.name, timeout=60) == content
