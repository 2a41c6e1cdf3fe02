"""Start, exit status and shutdown of a service process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from flywheel_common.grpc.channel import channel
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.echo import EchoStub
from tests.support.eventually import eventually
from tests.support.ports import free_port

REPOSITORY = Path(__file__).parents[3]


class Process:
    def __init__(self, inner: asyncio.subprocess.Process, port: int) -> None:
        self.inner, self.port = inner, port

    async def end(self) -> tuple[int, list[dict[str, Any]], str]:
        out, err = await asyncio.wait_for(self.inner.communicate(), 20)
        assert self.inner.returncode is not None
        return self.inner.returncode, [json.loads(line) for line in out.decode().splitlines()], err.decode()


async def start(*arguments: str, **settings: str) -> Process:
    port = free_port()
    values = {
        "LISTEN": f"127.0.0.1:{port}",
        "METRICS_LISTEN": f"127.0.0.1:{free_port()}",
        "DRAIN_SECONDS": "0.1",
        **settings,
    }
    environment = {**os.environ, **{f"FLYWHEEL_ECHO_{k}": v for k, v in values.items()}}
    inner = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.servers.echo_process",
        *arguments,
        stdout=-1,
        stderr=-1,
        env=environment,
        cwd=REPOSITORY,
    )
    return Process(inner, port)


async def test_a_process_logs_calls_and_exits_with_status_0_on_sigterm() -> None:
    process = await start()
    async with channel(f"127.0.0.1:{process.port}", client_name="ada") as opened:
        await opened.channel_ready()
        assert (
            await EchoStub(opened).Echo(Value(string_value="secret payload"))
        ).string_value == "secret payload"
    process.inner.send_signal(signal.SIGTERM)
    code, logs, errors = await process.end()
    assert code == 0
    (rpc,) = [line for line in logs if line["event"] == "rpc"]
    assert (rpc["method"], rpc["principal"], rpc["code"]) == (
        "/flywheel.testing.v1.EchoService/Echo",
        "ada",
        "OK",
    )
    assert "secret payload" not in json.dumps(logs)
    assert "closed" in errors


async def test_a_port_in_use_exits_with_status_3() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, errors = await (await start(LISTEN=address)).end()
    assert code == 3
    assert f"Cannot listen on {address}" in errors
    assert "Traceback" not in errors
    assert "closed" in errors


@pytest.mark.parametrize(
    ("arguments", "settings", "expected", "message"),
    [
        ((), {"DRAIN_SECONDS": "soon"}, 2, "FLYWHEEL_ECHO_DRAIN_SECONDS"),
        ((), {"LISTEN": "0.0.0.0:0"}, 2, "would accept every caller"),
        (("unavailable",), {}, 4, "PostgreSQL is down: start it."),
        (("crash",), {}, 1, "relay"),
        (("bug",), {}, 1, ""),
    ],
)
async def test_a_failed_start_prints_its_cause_and_sets_the_exit_code(
    arguments: tuple[str, ...], settings: dict[str, str], expected: int, message: str
) -> None:
    code, _, errors = await (await start(*arguments, **settings)).end()
    assert code == expected
    assert message in errors
    assert "Traceback" not in errors


async def test_a_killed_replica_fails_no_call_of_our_channel() -> None:
    replicas = [await start(LOG_RPCS="false") for _ in range(2)]
    answered, failed, stop = 0, [], asyncio.Event()
    async with channel(
        f"ipv4:127.0.0.1:{replicas[0].port},127.0.0.1:{replicas[1].port}", client_name="load"
    ) as opened:
        await opened.channel_ready()
        stub = EchoStub(opened)

        async def load() -> None:
            nonlocal answered
            while not stop.is_set():
                try:
                    await stub.Echo(Value(int64_value=1))
                    answered += 1
                except Exception as error:
                    failed.append(error)

        loaders = [asyncio.create_task(load()) for _ in range(4)]
        await eventually(lambda: answered > 500)
        replicas[0].inner.kill()
        await replicas[0].inner.wait()
        at_kill = answered
        await eventually(lambda: answered > at_kill + 500)
        stop.set()
        await asyncio.gather(*loaders)
    replicas[1].inner.send_signal(signal.SIGTERM)
    assert (await replicas[1].end())[0] == 0
    await replicas[0].inner.communicate()
    assert failed == []
