"""Gateways, and stand-ins for the registry and the feature service, as processes that a test can kill.

`python -m tests.support.servers.inference_processes feature PORT` is such a stand-in.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc

from flywheel_local import ports
from flywheel_local.platform import serves
from flywheel_local.process import Process
from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from tests.support.eventually import eventually
from tests.support.peers.inference import FeatureServicer, RegistryServicer, feature_server, registry_server

W = (0.5, -0.25, 1.0)


def python_process(name: str, module: list[str], folder: Path, environment: dict[str, str]) -> Process:
    """A Python process with the import paths of this one."""
    return Process(
        name,
        [sys.executable, "-m", *module],
        log=folder / f"{name}.log",
        environment={**environment, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        directory=Path(__file__).parents[3],
    )


class Peer:
    """A stand-in in a process: `feature`, or a `registry` that wants one release as champion."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._kind = kind
        self._folder = folder
        self.port = ports.free([kind])[kind]
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        module = ["tests.support.servers.inference_processes", self._kind, str(self.port)]
        self.process = python_process(self._kind, module, self._folder, {})


class GatewayProcess:
    """A gateway in a process."""

    def __init__(self, name: str, folder: Path, **settings: Any) -> None:
        self._name = name
        self._folder = folder
        self.port = ports.free([name])[name]
        values = {
            "listen": self.address,
            "metrics_listen": "",
            "log_rpcs": "false",
            "state_dir": str(folder / f"{name}-state"),
            "gateway_id": name,
            **settings,
        }
        self._environment = {f"FLYWHEEL_INFERENCE_{key.upper()}": str(v) for key, v in values.items()}
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def memory_bytes(self) -> int:
        """Resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def start(self) -> None:
        self.process = python_process(
            self._name, ["flywheel_inference", "serve"], self._folder, self._environment
        )

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.process.signal(signal.SIGTERM)

    def wait_ready(self, models: int = 1, within: float = 60.0) -> None:
        """As `ready`, without an event loop."""
        asyncio.run(self.ready(models, within))

    async def ready(self, models: int = 1, within: float = 60.0) -> None:
        """Waits until the gateway serves all its models."""

        async def serving() -> bool:
            assert self.process.running, self.process.log.read_text(errors="replace")[-3000:]
            if not await asyncio.to_thread(serves, self.address):
                return False
            async with grpc.aio.insecure_channel(self.address) as channel:
                stub = inference_pb2_grpc.InferenceServiceStub(channel)
                status = await stub.GetServingStatus(inference_pb2.GetServingStatusRequest(), timeout=5)
            return sum(bool(model.ready_releases) for model in status.models) >= models

        await eventually(serving, within=within)


async def _serve(kind: str, port: int) -> None:
    servicer: Any
    if kind == "feature":
        servicer = FeatureServicer()
        server = feature_server(servicer)
    else:
        servicer = RegistryServicer()
        release = servicer.release(1, W)
        release.release.fallback.cached_max_age.FromSeconds(3600)
        servicer.want(champion=release)
        server = registry_server(servicer)
    server.port = port
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
