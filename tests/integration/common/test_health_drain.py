"""Health checks, readiness and graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import weakref
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.server import Server
from flywheel_common.process.supervision import BackgroundFailed, RestartRule
from flywheel_common.process.worker import PortTaken, Worker
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.echo import SERVICE, Echo, EchoStub, add_echo
from tests.support.eventually import eventually
from tests.support.ports import free_port

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SOON = RestartRule(first_delay_seconds=0.02)
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def make_server(settings: Any, **options: Any) -> Server:
    return Server(
        settings,
        **{
            "servicers": [(add_echo, Echo())],
            "full_service_names": [SERVICE],
            "registry": CollectorRegistry(),
            **options,
        },
    )


def settings(**changes: Any) -> Any:
    from flywheel_common.config import ServiceSettings

    values = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "drain_seconds": 0.3,
        "grace_seconds": 2.0,
        "log_rpcs": False,
    }
    return ServiceSettings(**{**values, **changes})


async def watch(stub: Any, seen: list[int], service: str = "") -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for answer in stub.Watch(health_pb2.HealthCheckRequest(service=service)):
            seen.append(answer.status)  # noqa: PERF401 - keeps what came before a failure


async def test_health_watchers_see_changes_after_another_watcher_left(running: Any) -> None:
    stub = health_pb2_grpc.HealthStub(running.channel)
    first: list[int] = []
    second: list[int] = []
    tasks = [asyncio.create_task(watch(stub, first)), asyncio.create_task(watch(stub, second))]
    await eventually(lambda: first == [SERVING] and second == [SERVING])
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    running.server.health.set_ready(False)
    await eventually(lambda: second == [SERVING, NOT_SERVING])
    running.server.health.set_ready(True)
    await eventually(lambda: second == [SERVING, NOT_SERVING, SERVING])
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)


async def test_health_of_an_unknown_service(running: Any) -> None:
    stub = health_pb2_grpc.HealthStub(running.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nope"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    seen: list[int] = []
    task = asyncio.create_task(watch(stub, seen, "nope"))
    await eventually(lambda: seen == [UNKNOWN])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_process_is_ready_when_all_its_services_are() -> None:
    from flywheel_common.grpc.health import Health

    health = Health(["a", "b"])
    assert health.status() == NOT_SERVING
    health.set_ready(True, "a")
    assert (health.status("a"), health.status("b"), health.status()) == (SERVING, NOT_SERVING, NOT_SERVING)
    health.set_ready(True, "b")
    assert health.status() == SERVING
    health.drain()
    health.set_ready(True)
    assert health.status() == NOT_SERVING


async def test_readiness_sets_the_health_status() -> None:
    ready = asyncio.Event()
    server = make_server(settings(drain_seconds=0.0), readiness=ready.is_set)
    task = asyncio.create_task(server.run_until_signal())
    await eventually(lambda: server.port)
    assert server.health.status() == NOT_SERVING
    ready.set()
    await eventually(lambda: server.health.status() == SERVING)
    server.request_stop()
    await task


async def test_sigterm_under_load_fails_no_call_of_our_channel() -> None:
    servers = [make_server(settings()) for _ in range(2)]
    tasks = [asyncio.create_task(s.run_until_signal()) for s in servers]
    await eventually(lambda: all(s.port for s in servers))
    for s in servers:
        s.health.set_ready()
    address = "ipv4:" + ",".join(f"127.0.0.1:{s.port}" for s in servers)
    stop, answered, failed = asyncio.Event(), 0, []
    async with channel(address, client_name="load") as opened:
        stub = EchoStub(opened)

        async def load() -> None:
            nonlocal answered
            while not stop.is_set():
                try:
                    await stub.Echo(Value(string_value="x"))
                    answered += 1
                except grpc.aio.AioRpcError as error:
                    failed.append(error)

        loaders = [asyncio.create_task(load()) for _ in range(8)]
        await eventually(lambda: answered > 200)
        servers[0].request_stop()
        await asyncio.wait_for(tasks[0], 10)
        at_stop = answered
        await eventually(lambda: answered > at_stop + 200)
        stop.set()
        await asyncio.gather(*loaders)
    servers[1].request_stop()
    await tasks[1]
    assert failed == []


async def test_sigterm_stops_the_server() -> None:
    server = make_server(settings(drain_seconds=0.0))
    task = asyncio.create_task(server.run_until_signal())
    await eventually(lambda: server.port)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(task, 10)


async def test_running_calls_finish_within_the_grace() -> None:
    echo = Echo()
    server = Server(
        settings(drain_seconds=0.0),
        servicers=[(add_echo, echo)],
        full_service_names=[SERVICE],
        registry=CollectorRegistry(),
    )
    task = asyncio.create_task(server.run_until_signal())
    await eventually(lambda: server.port)
    server.health.set_ready()
    async with channel(f"127.0.0.1:{server.port}", client_name="t") as opened:
        call = asyncio.ensure_future(EchoStub(opened).Echo(Value(string_value="wait")))
        await eventually(lambda: echo.running == 1)
        server.request_stop()
        await eventually(lambda: server.health.status() == NOT_SERVING)
        echo.release.set()
        assert (await call).string_value == "wait"
    await task


async def test_a_port_in_use_is_reported() -> None:
    first = make_server(settings())
    async with first:
        second = make_server(settings(listen=f"127.0.0.1:{first.port}"))
        with pytest.raises(PortTaken, match=f"127.0.0.1:{first.port}.*set listen") as caught:
            await second.start()
        await second.stop()
    assert caught.value.code == 3


async def test_a_metrics_port_in_use_is_reported() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with make_server(settings(metrics_listen=address)):
        second = make_server(settings(metrics_listen=address))
        with pytest.raises(PortTaken, match="metrics_listen"):
            await second.start()
        await second.stop()


async def test_a_server_that_did_not_start_is_released() -> None:
    """Otherwise gRPC's destructor runs at interpreter exit and prints "Error in sys.excepthook"."""
    registry = CollectorRegistry()
    async with make_server(settings()) as first:
        second = make_server(settings(listen=f"127.0.0.1:{first.port}"), registry=registry)
        with contextlib.suppress(PortTaken):
            await second.start()
        released = weakref.ref(second)
        del second
        gc.collect()
        assert released() is None


async def test_a_failed_background_task_starts_again_and_calls_go_on() -> None:
    attempts = 0

    async def fails_twice() -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 2:
            raise RuntimeError("broken")
        await asyncio.Event().wait()

    registry = CollectorRegistry()
    server = make_server(settings(drain_seconds=0.0), registry=registry, restarts=SOON)
    server.add_background("bad", fails_twice)
    task = asyncio.create_task(server.run_until_signal())
    await eventually(lambda: attempts == 3)
    async with channel(f"127.0.0.1:{server.port}", client_name="t", health_check=False) as opened:
        assert (await EchoStub(opened).Echo(Value(string_value="x"))).string_value == "x"
    assert registry.get_sample_value("flywheel_background_failures_total", {"task": "bad"}) == 2
    server.request_stop()
    await asyncio.wait_for(task, 10)


async def test_five_failures_in_a_row_drain_and_end_the_process() -> None:
    attempts = 0

    async def fails() -> None:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("broken")

    async def for_ever() -> None:
        await asyncio.Event().wait()

    server = make_server(settings(drain_seconds=0.5), readiness=lambda: True, restarts=SOON)
    server.add_background("fine", for_ever)
    server.add_background("bad", fails)
    task = asyncio.create_task(server.run_until_signal())
    await eventually(lambda: server.port)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as opened:
        await eventually(lambda: attempts == 5 and server.health.status() == NOT_SERVING)
        # The process drains: calls that are on their way here are answered.
        assert (await EchoStub(opened).Echo(Value(string_value="x"))).string_value == "x"
    with pytest.raises(BackgroundFailed, match=r"'bad' failed 5 times in a row.*RuntimeError: broken"):
        await asyncio.wait_for(task, 10)


async def test_tasks_end_after_the_calls_and_before_the_tasks_that_take_their_work() -> None:
    ended: list[str] = []
    echo = Echo()

    def recorded(name: str) -> Any:
        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)
                ended.append(name)

        return work

    server = make_server(settings(drain_seconds=0.0), servicers=[(add_echo, echo)])
    server.add_background("log", recorded("log"), stops_last=True)
    server.add_background("consumer", recorded("consumer"))
    task = asyncio.create_task(server.run_until_signal())
    await eventually(lambda: server.port)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as opened:
        call = asyncio.ensure_future(EchoStub(opened).Echo(Value(string_value="wait")))
        call.add_done_callback(lambda _: ended.append("call"))
        await eventually(lambda: echo.running == 1)
        server.request_stop()
        await eventually(lambda: server.health.status() == NOT_SERVING)
        echo.release.set()
        assert (await call).string_value == "wait"
    await task
    assert ended == ["call", "consumer", "log"]


def test_two_background_tasks_cannot_have_one_name() -> None:
    async def work() -> None: ...

    server = Worker(settings())
    server.add_background("relay", work)
    with pytest.raises(ValueError, match="relay"):
        server.add_background("relay", work)


async def test_the_metrics_page_shows_red_metrics() -> None:
    import urllib.request

    address = f"127.0.0.1:{free_port()}"
    async with make_server(settings(metrics_listen=address)):
        page = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"http://{address}/metrics").read().decode()
        )
    assert "flywheel_rpc_in_flight 0.0" in page
