"""A gateway process on Triton, Kafka and Redis, for one part of the benchmarks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from flywheel_local.backends import Backends
from tests.support.peers.inference import RegistryServicer, registry_server
from tests.support.servers.inference_processes import GatewayProcess, Peer


@asynccontextmanager
async def single_gateway(folder: Path, registry: RegistryServicer) -> AsyncIterator[tuple[Backends, str]]:
    """The backends, and the address of a gateway that has loaded what the registry wants."""
    server = registry_server(registry)
    await server.start()
    with Backends({"triton", "kafka", "redis"}, directory=folder, durable=False) as backends:
        feature = Peer("feature", folder)
        gateway = GatewayProcess(
            "gateway",
            folder,
            registry_address=server.address,
            feature_address=feature.address,
            triton_url=backends.triton.grpc_url,
            kafka_bootstrap=backends.kafka.bootstrap,
            redis_url=backends.redis.url,
        )
        try:
            await gateway.ready()
            yield backends, gateway.address
        finally:
            gateway.process.stop(5)
            feature.process.kill()
            await server.stop()
