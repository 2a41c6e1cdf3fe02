"""A server whose event loop is late refuses calls before it parses them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.echo import SERVICE
from tests.support.eventually import eventually

METHOD = f"/{SERVICE}/Echo"


async def saturated(start: Any, **options: Any) -> Any:
    """A server that lets no call in; nothing measures its loop."""
    running = await start(max_late_seconds=0.01, server_options=options)
    running.server.load_limit.limit = 0
    return running


async def test_a_saturated_server_refuses_with_a_reason_and_a_retry_delay(start: Any) -> None:
    running = await saturated(start)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Echo(Value(string_value="hello"), timeout=5)
    error: Any = from_rpc_error(caught.value)
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED") == (error.code, error.reason)
    assert error.retry_after_seconds == 0.05
    labels = {"method": METHOD, "code": "RESOURCE_EXHAUSTED"}
    assert 1.0 == running.registry.get_sample_value("flywheel_rpc_handled_total", labels)


async def test_a_saturated_server_refuses_before_it_authenticates_and_parses(start: Any) -> None:
    running = await saturated(start)
    raw = running.channel.unary_unary(METHOD)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw(b"\xff not a message", timeout=5)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_saturated_server_answers_health_checks_and_streams(start: Any) -> None:
    running = await saturated(start)
    health = health_pb2_grpc.HealthStub(running.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    found = [value.int64_value async for value in running.stub.Count(Value(int64_value=3), timeout=5)]
    assert [0, 1, 2] == found


async def test_a_saturated_server_parses_calls_that_are_never_refused(start: Any) -> None:
    running = await saturated(start, never_refused=lambda metadata: ("x-urgent", "yes") in metadata)
    sent = Value(string_value="hello")
    assert sent == await running.stub.Echo(sent, timeout=5, metadata=(("x-urgent", "yes"),))


async def test_open_calls_are_counted_until_they_end_or_are_cancelled(start: Any) -> None:
    running = await start(max_late_seconds=1.0)
    waiting = [running.stub.Echo(Value(string_value="wait"), timeout=10) for _ in range(5)]
    await eventually(lambda: running.echo.running == 5)
    assert 5 == running.server.load_limit.open
    for call in waiting[:2]:
        call.cancel()
    await eventually(lambda: running.server.load_limit.open == 3)
    running.echo.release.set()
    await asyncio.gather(*waiting[2:])
    await eventually(lambda: running.server.load_limit.open == 0)


async def test_a_burst_of_calls_is_accepted_and_answered(start: Any) -> None:
    running = await start(max_late_seconds=60.0)
    sent = [Value(int64_value=number) for number in range(500)]
    assert sent == await asyncio.gather(*(running.stub.Echo(one, timeout=30) for one in sent))


async def test_a_method_with_a_smaller_limit_refuses_larger_requests_unparsed(start: Any) -> None:
    running = await start(server_options={"request_bytes": {METHOD: 100}})
    raw = running.channel.unary_unary(METHOD)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw(b"\xff" * 101, timeout=5)
    error = from_rpc_error(caught.value)
    assert ("MESSAGE_TOO_LARGE", {"limit_bytes": "100"}) == (error.reason, error.metadata)
    sent = Value(string_value="x" * 90)
    assert sent == await running.stub.Echo(sent, timeout=5)
