"""Services read their sockets in one thread: fewer context switches for each call."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flywheel_common.process.grpc_poller import SETTING

PROGRAM = """
import asyncio, resource
import PACKAGE
import grpc

CALLS = 300

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/no.such/Method")
        for count in range(CALLS + 1):
            if count == 1:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
            try:
                await call(b"")
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        print((resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before) / CALLS)
    await server.stop(0)

asyncio.run(main())
"""


def _switches(package: str, experiments: str | None = None) -> float:
    """Voluntary context switches per call, client and server together."""
    environment = {name: value for name, value in os.environ.items() if name != SETTING}
    if experiments is not None:
        environment[SETTING] = experiments
    program = [sys.executable, "-c", PROGRAM.replace("PACKAGE", package)]
    ended = subprocess.run(program, check=True, capture_output=True, text=True, timeout=60, env=environment)
    return float(ended.stdout)


@pytest.fixture(scope="module")
def by_default() -> float:
    return _switches("grpc")


@pytest.mark.parametrize("service", ["feature", "registry", "trainer", "inference", "monitor"])
def test_a_service_needs_half_the_switches(service: str, by_default: float) -> None:
    assert _switches(f"flywheel_{service}.__main__") < by_default / 2


def test_the_setting_of_the_environment_counts(by_default: float) -> None:
    assert _switches("flywheel_inference.__main__", "event_engine_poller_for_python") > by_default / 2
