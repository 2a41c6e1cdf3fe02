"""A gateway in a process of its own, with model server and logs in memory, beside a real feature stand-in.

`python -m tests.support.servers.memory_gateway PORT FEATURE_ADDRESS` serves it. For measurements of the
gateway alone: no backend takes a core from it.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import onnxruntime
import uvloop
from prometheus_client import CollectorRegistry

from flywheel_common.arrays import Array
from flywheel_common.grpc.server import Server
from flywheel_common.process.freed_memory import keep_freed_memory
from flywheel_inference.config import InferenceSettings
from flywheel_inference.prediction_log.rows import LogRecord
from flywheel_inference.server import wire
from tests.support.servers.inference import MemoryDeployment, settings_for_tests
from tests.support.servers.inference_processes import GatewayProcess, Peer, W, python_process

MODEL_SECONDS = 0.0015
"""How long a call of the model takes, without CPU of the gateway."""
DEFAULTS = ("batch_cap_seconds", "default_budget_seconds", "max_late_seconds")


class MemoryGateway(GatewayProcess):
    """The process, as a GatewayProcess of the tests."""

    def __init__(self, folder: Path, feature: Peer) -> None:
        self._feature = feature
        super().__init__("memory-gateway", folder)

    def start(self) -> None:
        module = ["tests.support.servers.memory_gateway", str(self.port), self._feature.address]
        self.process = python_process(self._name, module, self._folder, {})


@contextmanager
def memory_gateway(folder: Path) -> Iterator[MemoryGateway]:
    """A ready gateway and its feature stand-in."""
    feature = Peer("feature", folder)
    gateway = MemoryGateway(folder, feature)
    try:
        gateway.wait_ready()
        yield gateway
    finally:
        gateway.process.stop(5)
        feature.process.kill()


class _Sessions:
    """Runs models in sessions that it keeps."""

    def __init__(self) -> None:
        self._by_file: dict[bytes, Any] = {}

    def run(self, file: bytes, tensors: Mapping[str, Array], output: str) -> Array:
        if file not in self._by_file:
            self._by_file[file] = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (found,) = self._by_file[file].run([output], dict(tensors))
        return found


async def memory_server(stack: AsyncExitStack, port: int, feature_address: str) -> Server:
    """The gateway of this process, which is not started."""
    keep_freed_memory()  # as the gateway's command does
    deployment = MemoryDeployment(stack)
    await deployment.start()
    deployment.models._run = _Sessions().run
    infer = deployment.models.infer

    async def infer_slowly(*args: Any) -> Array:
        await asyncio.sleep(MODEL_SECONDS)
        return await infer(*args)

    async def forget(records: Sequence[LogRecord]) -> int:
        return len(records)

    deployment.models.infer = infer_slowly  # type: ignore[method-assign]
    deployment.log.publish = forget  # type: ignore[method-assign]
    fields = InferenceSettings.model_fields
    settings = settings_for_tests(
        listen=f"127.0.0.1:{port}",
        registry_address=deployment.registry_server.address,
        feature_address=feature_address,
        **{name: fields[name].default for name in DEFAULTS},
    )
    ports = await deployment.ports(settings, stack)
    server = wire(settings, stack, ports, gateway_id="memory", prometheus=CollectorRegistry())
    deployment.registry.want(champion=deployment.registry.release(1, W))
    gc.collect()
    gc.freeze()  # as flywheel_common.process.runtime does
    return server


async def main(port: int, feature_address: str) -> None:
    async with AsyncExitStack() as stack:
        server = await memory_server(stack, port, feature_address)
        await server.run_until_signal()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2]))
