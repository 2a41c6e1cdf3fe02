"""A process starts, says why it cannot, and ends cleanly."""

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

PROGRAM = """
import asyncio, sys
from flywheel_common.config import ServiceSettings
from flywheel_common.grpc.server import Server
from flywheel_common.process.runtime import main
from tests.support.echo import SERVICE, Echo, add_echo
from flywheel_common.errors import Unavailable
from pydantic_settings import SettingsConfigDict

class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_ECHO_")

async def build(settings, stack):
    stack.callback(lambda: print("closed", file=sys.stderr, flush=True))
    if "unavailable" in sys.argv:
        raise Unavailable("PostgreSQL is away: start it.")
    if "bug" in sys.argv:
        raise KeyError("x")
    server = Server(settings, servicers=[(add_echo, Echo())], full_service_names=[SERVICE])
    async def crash():
        raise RuntimeError("broken")
    if "crash" in sys.argv:
        server.add_background("relay", crash)
    server.health.set_ready()
    return server

main("echo", Settings, build)
"""


class Process:
    def __init__(self, inner: asyncio.subprocess.Process, port: int) -> None:
        self.inner, self.port = inner, port

    async def end(self) -> tuple[int, list[dict[str, Any]], str]:
        out, err = await asyncio.wait_for(self.inner.communicate(), 20)
        assert self.inner.returncode is not None
        return self.inner.returncode, [json.loads(line) for line in out.decode().splitlines()], err.decode()


async def start(tmp_path: Path, *arguments: str, **settings: str) -> Process:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    port = free_port()
    values = {
        "LISTEN": f"127.0.0.1:{port}",
        "METRICS_LISTEN": f"127.0.0.1:{free_port()}",
        "DRAIN_SECONDS": "0.1",
        **settings,
    }
    environment = {**os.environ, **{f"FLYWHEEL_ECHO_{k}": v for k, v in values.items()}}
    inner = await asyncio.create_subprocess_exec(
        sys.executable, str(program), *arguments, stdout=-1, stderr=-1, env=environment
    )
    return Process(inner, port)


async def test_a_process_serves_logs_each_call_and_ends_with_0_on_sigterm(tmp_path: Path) -> None:
    process = await start(tmp_path)
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


async def test_a_second_process_on_the_same_port_says_so_and_exits_with_3(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, errors = await (await start(tmp_path, LISTEN=address)).end()
    assert code == 3
    assert f"Cannot listen on {address}" in errors
    assert "Traceback" not in errors
    assert "closed" in errors


@pytest.mark.parametrize(
    ("arguments", "settings", "expected", "said"),
    [
        ((), {"DRAIN_SECONDS": "soon"}, 2, "FLYWHEEL_ECHO_DRAIN_SECONDS"),
        ((), {"LISTEN": "0.0.0.0:0"}, 2, "would let anyone in"),
        (("unavailable",), {}, 4, "PostgreSQL is away: start it."),
        (("crash",), {}, 1, "relay"),
        (("bug",), {}, 1, ""),
    ],
)
async def test_what_keeps_it_from_running_is_said_once_with_its_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str], expected: int, said: str
) -> None:
    code, _, errors = await (await start(tmp_path, *arguments, **settings)).end()
    assert code == expected
    assert said in errors
    assert "Traceback" not in errors


async def test_a_killed_replica_costs_no_call_through_our_channel(tmp_path: Path) -> None:
    replicas = [await start(tmp_path, LOG_RPCS="false") for _ in range(2)]
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
