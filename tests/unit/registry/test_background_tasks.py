"""Background tasks of the registry after unexpected exceptions."""

from __future__ import annotations

from contextlib import suppress

import grpc

from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.server import wire
from tests.support.background_faults import Faults
from tests.support.servers.registry import memory_ports, registry_settings, running


async def test_each_background_task_works_again_after_an_unexpected_error() -> None:
    faults = Faults()
    ports, clock = memory_ports(MemoryStore())
    server = wire(registry_settings(), clock, faults.wrap(ports))
    faults.watch(server)
    read = pb.ListModelVersionsRequest(parent="projects/p/models/none", filter="stage=PRODUCTION")
    async with running(server) as stub:

        async def read_the_production_version() -> None:
            with suppress(grpc.RpcError):
                await stub.ListModelVersions(read, timeout=5)

        await faults.overcome(read_the_production_version)
