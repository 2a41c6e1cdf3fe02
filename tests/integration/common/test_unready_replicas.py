"""Calls through our channel while replicas are not ready."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.echo import EchoStub
from tests.support.eventually import eventually


async def reason(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value).reason


async def unready(running: Any) -> None:
    """The server is not ready, and the channel knows."""
    await running.stub.Echo(Value())
    running.server.health.set_ready(False)
    await eventually(lambda: running.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE)


async def test_an_error_of_an_unready_service_has_its_reason(running: Any) -> None:
    await unready(running)
    assert "BACKEND_UNAVAILABLE" == await reason(
        running.stub.Echo(Value(string_value="unavailable"), timeout=5)
    )
    assert 1 == running.echo.refused, "sent once: the channel does not retry it"
    assert "NO_SUCH_THING" == await reason(running.stub.Echo(Value(string_value="not found"), timeout=5))
    assert "x" == (await running.stub.Echo(Value(string_value="x"), timeout=5)).string_value


async def test_the_reason_is_kept_when_readiness_ends_between_retries(running: Any) -> None:
    await running.stub.Echo(Value())
    call = running.stub.Echo(Value(string_value="unavailable"), timeout=5)

    async def refused_once() -> bool:
        return bool(running.echo.refused)

    await eventually(refused_once, every=0.001)
    running.server.health.set_ready(False)
    assert "BACKEND_UNAVAILABLE" == await reason(call)


async def test_the_timeout_covers_both_attempts(running: Any) -> None:
    await unready(running)
    assert "DEADLINE_EXCEEDED" == await reason(running.stub.Echo(Value(string_value="wait"), timeout=0.3))
    left = (await running.stub.Echo(Value(string_value="left"), timeout=5)).double_value
    assert 0 < left <= 5


async def test_a_stopped_service_is_unavailable_without_a_reason(running: Any) -> None:
    await running.stub.Echo(Value())
    await running.server.stop()
    assert "UNAVAILABLE" == await reason(running.stub.Echo(Value(), timeout=5))


async def test_calls_go_to_the_ready_replica(start: Any) -> None:
    ready, other = await start(), await start()
    addresses = f"ipv4:{ready.address},{other.address}"
    async with channel(addresses, client_name="test") as both:
        stub = EchoStub(both)

        async def other_is_called() -> bool:
            await stub.Echo(Value(string_value="x"))
            return bool(calls(other))

        def calls(running: Any) -> float:
            name = "flywheel_rpc_seconds_count"
            return sum(s.value for m in running.registry.collect() for s in m.samples if s.name == name)

        await eventually(other_is_called)
        other.server.health.set_ready(False)

        async def only_one_is_called() -> bool:
            before = calls(other)
            for _ in range(20):
                await stub.Echo(Value(string_value="x"))
            return before == calls(other)

        await eventually(only_one_is_called)
        ready.server.health.set_ready(False)
        await eventually(lambda: both.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        assert "BACKEND_UNAVAILABLE" == await reason(stub.Echo(Value(string_value="unavailable"), timeout=5))
        other.server.health.set_ready(True)
        await eventually(lambda: both.get_state() is grpc.ChannelConnectivity.READY)
        before = calls(ready)
        for _ in range(20):
            await stub.Echo(Value(string_value="x"))
        assert before == calls(ready)
