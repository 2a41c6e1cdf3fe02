"""A gateway process with stand-ins for registry and feature service, on backends of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from flywheel_local.backends import Backends
from tests.support.servers.inference_processes import GatewayProcess, Peer


class Platform:
    """Backends, peers and gateways of one test, which may kill each of them."""

    def __init__(self, backends: Backends, folder: Path) -> None:
        self.backends = backends
        self.folder = folder
        self.peers = {kind: Peer(kind, folder) for kind in ("feature", "registry")}
        self.gateways: list[GatewayProcess] = []

    async def gateway(self, **settings: Any) -> GatewayProcess:
        """A further gateway, which serves its model."""
        values = {
            "registry_address": self.peers["registry"].address,
            "feature_address": self.peers["feature"].address,
            "triton_url": self.backends.triton.grpc_url,
            "kafka_bootstrap": self.backends.kafka.bootstrap,
            "redis_url": self.backends.redis.url,
            **settings,
        }
        gateway = GatewayProcess(f"gateway-{len(self.gateways)}", self.folder, **values)
        self.gateways.append(gateway)
        await gateway.ready()
        return gateway

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.process.stop(5)
        for peer in self.peers.values():
            peer.process.kill()


@contextmanager
def running_platform(folder: Path) -> Iterator[Platform]:
    with Backends({"triton", "kafka", "redis"}, directory=folder / "backends", durable=False) as backends:
        platform = Platform(backends, folder)
        try:
            yield platform
        finally:
            platform.close()


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with AsyncExitStack() as stack:
        yield stack.enter_context(running_platform(tmp_path))
