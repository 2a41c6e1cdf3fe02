"""Services read their sockets in one thread: fewer context switches for each call."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flywheel_common.process.grpc_poller import SETTING

PROGRAM = r"""
import asyncio
from pathlib import Path
import PACKAGE
import grpc

CALLS = 300

def switches():
    # Voluntary ones, of the threads of gRPC's EventEngine.
    found = 0
    for thread in Path("/proc/self/task").iterdir():
        if (thread / "comm").read_text().strip() == "event_engine":
            status = (thread / "status").read_text()
            found += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/no.such/Method")
        for count in range(CALLS + 1):
            if count == 1:
                before = switches()
            try:
                await call(b"")
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        print((switches() - before) / CALLS)
    await server.stop(0)

asyncio.run(main())
"""


def _switches(package: str, experiments: str | None = None) -> float:
    """Context switches of the threads that would read the sockets, per call of client and server together.
    Those of all threads depend on what else the machine does."""
    environment = {name: value for name, value in os.environ.items() if name != SETTING}
    if experiments is not None:
        environment[SETTING] = experiments
    program = [sys.executable, "-c", PROGRAM.replace("PACKAGE", package)]
    ended = subprocess.run(program, check=True, capture_output=True, text=True, timeout=60, env=environment)
    return float(ended.stdout)


@pytest.mark.parametrize("service", ["feature", "registry", "trainer", "inference", "monitor"])
def test_no_other_thread_reads_the_sockets_of_a_service(service: str) -> None:
    assert _switches(f"flywheel_{service}.__main__") < 0.2


def test_without_the_setting_other_threads_read_them() -> None:
    assert _switches("grpc") > 1


def test_the_setting_of_the_environment_counts() -> None:
    assert _switches("flywheel_inference.__main__", "") > 1
