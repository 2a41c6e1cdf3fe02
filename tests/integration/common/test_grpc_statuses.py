"""Statuses, reasons and limits of the gRPC server."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from typing import Any

import grpc
import pytest

from flywheel_common import errors
from flywheel_common.grpc.channel import from_rpc_error
from flywheel_common.grpc.errors import MessageTooLarge
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.echo import SERVICE
from tests.support.eventually import eventually


async def failure(call: Any) -> errors.FlywheelError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def text(value: str) -> Value:
    return Value(string_value=value)


async def test_a_response_is_returned(running: Any) -> None:
    assert await running.stub.Echo(text("hello")) == text("hello")


async def test_a_domain_error_arrives_with_reason_and_metadata(running: Any) -> None:
    error = await failure(running.stub.Echo(text("not found")))
    assert type(error) is errors.NotFound
    assert (error.reason, error.metadata, error.message) == (
        "NO_SUCH_THING",
        {"thing": "x"},
        "There is no such thing: make it first.",
    )


async def test_unavailable_is_retried_except_in_the_last_second_of_a_deadline(running: Any) -> None:
    assert (
        "BACKEND_UNAVAILABLE" == (await failure(running.stub.Echo(text("unavailable"), timeout=10.0))).reason
    )
    assert 4 == running.echo.refused
    assert (
        "BACKEND_UNAVAILABLE" == (await failure(running.stub.Echo(text("unavailable"), timeout=0.9))).reason
    )
    assert 5 == running.echo.refused


async def test_an_unexpected_exception_shows_only_an_error_id(
    running: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.Echo(text("bug"))
    error = from_rpc_error(caught.value)
    assert type(error) is errors.Internal
    assert len(error.metadata["error_id"]) == 36
    assert "hunter2" not in f"{caught.value!r} {caught.value.trailing_metadata()!r}"


async def test_malformed_bytes_are_an_invalid_argument(running: Any) -> None:
    raw = running.channel.unary_unary(f"/{SERVICE}/Echo")
    error = await failure(raw(b"\xff\xff\xff\xff"))
    assert (type(error), error.reason) == (errors.InvalidArgument, "MALFORMED_REQUEST")


async def test_malformed_bytes_inside_a_stream_are_an_invalid_argument(running: Any) -> None:
    raw = running.channel.stream_unary(f"/{SERVICE}/Sum")
    error = await failure(raw(iter([Value(int64_value=1).SerializeToString(), b"\xff\xff"])))
    assert (type(error), error.reason) == (errors.InvalidArgument, "MALFORMED_REQUEST")


async def test_a_client_that_still_sends_receives_the_error(running: Any) -> None:
    raw = running.channel.stream_unary(f"/{SERVICE}/Sum")
    much = [text("x" * 1_000_000).SerializeToString()] * 20
    for _ in range(30):
        error = await failure(raw(iter([*much[:1], b"\xff\xff", *much])))
        assert (type(error), error.reason) == (errors.InvalidArgument, "MALFORMED_REQUEST")


async def test_a_large_message_is_refused_with_the_limit(start: Any) -> None:
    running = await start(max_message_bytes=1000)
    large, fits = text("x" * 1500), text("x" * 900)
    for _ in range(3):
        for call in (running.stub.Echo(large), running.stub.Sum(iter([Value(int64_value=1), large]))):
            error = await failure(call)
            assert (type(error), error.metadata) == (MessageTooLarge, {"limit_bytes": "1000"})
        assert await running.stub.Echo(fits) == fits


async def test_a_message_that_is_refused_for_its_size_is_not_copied(start: Any) -> None:
    running = await start(max_message_bytes=1_000_000)
    raw = running.channel.unary_unary(f"/{SERVICE}/Echo")
    large = bytes(1_500_000)
    tracemalloc.start()
    try:
        for _ in range(5):
            assert type(await failure(raw(large))) is MessageTooLarge
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # gRPC would have copied it into bytes.
    assert peak < len(large)


@pytest.mark.parametrize(("size", "reason"), [(1_500_000, "MESSAGE_TOO_LARGE"), (900_000, "NO_SUCH_THING")])
async def test_a_failed_request_does_not_stay_in_memory(start: Any, size: int, reason: str) -> None:
    running = await start(max_message_bytes=1_000_000)
    # The last one of the alternatives is the value.
    message = Value(bytes_value=bytes(size)).SerializeToString() + text("not found").SerializeToString()
    raw = running.channel.unary_unary(f"/{SERVICE}/Echo")
    assert reason == (await failure(raw(message))).reason
    gc.collect()
    # A request that only the garbage collector frees stays for minutes in a process with many objects.
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(8):
            await failure(raw(message))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept < size


async def test_a_servicer_may_call_abort(running: Any) -> None:
    error = await failure(running.stub.Echo(text("abort")))
    assert (type(error), error.message) == (errors.FailedPrecondition, "by hand")


async def test_a_timeout_inside_is_a_deadline_exceeded(running: Any) -> None:
    assert type(await failure(running.stub.Echo(text("timeout")))) is errors.DeadlineExceeded


async def test_a_call_without_a_deadline_gets_the_default(start: Any) -> None:
    running = await start(default_deadline_seconds=0.1)
    plain = running.channel._inner.unary_unary(f"/{SERVICE}/Echo", Value.SerializeToString, Value.FromString)
    began = time.monotonic()
    error = await failure(plain(text("wait")))
    assert type(error) is errors.DeadlineExceeded
    assert time.monotonic() - began < 5
    assert (await plain(text("left"))).double_value == pytest.approx(0.1, abs=0.09)


async def test_a_method_may_have_its_own_default_deadline(start: Any) -> None:
    running = await start(server_options={"deadlines": {f"/{SERVICE}/Echo": None}})
    plain = running.channel._inner.unary_unary(f"/{SERVICE}/Echo", Value.SerializeToString, Value.FromString)
    assert (await plain(text("left"))).double_value == -1.0


async def test_the_client_deadline_is_the_budget_of_the_call(running: Any) -> None:
    left = (await running.stub.Echo(text("left"), timeout=3.0)).double_value
    # gRPC rounds a timeout up on the wire.
    assert 2.0 < left < 3.1


async def test_a_call_is_cancelled_when_its_client_gives_up(running: Any) -> None:
    error = await failure(running.stub.Echo(text("wait"), timeout=0.1))
    assert type(error) is errors.DeadlineExceeded
    await eventually(lambda: running.echo.cancelled == 1 and running.server.admission.in_flight == 0)


async def test_all_four_kinds_of_call_work(running: Any) -> None:
    assert [v.int64_value async for v in running.stub.Count(Value(int64_value=3))] == [0, 1, 2]
    assert [v.int64_value async for v in running.stub.Write(Value(int64_value=3))] == [0, 1, 2]
    numbers = [Value(int64_value=i) for i in (1, 2, 3)]
    assert (await running.stub.Sum(iter(numbers))).int64_value == 6
    assert [v.int64_value async for v in running.stub.Double(iter(numbers))] == [2, 4, 6]


async def test_a_failing_stream_delivers_its_messages_before_the_error(running: Any) -> None:
    seen: list[int] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for value in running.stub.Double(iter([Value(int64_value=1), Value(int64_value=-1)])):
            seen.append(value.int64_value)  # noqa: PERF401 - what came before a failure counts
    assert seen == [2]
    assert from_rpc_error(caught.value).reason == "NEGATIVE"


async def test_overload_is_refused_while_health_is_served(start: Any) -> None:
    running = await start(max_concurrent_rpcs=2, channel_options={"retries": False})
    waiting = [asyncio.ensure_future(running.stub.Echo(text("wait"))) for _ in range(2)]
    await eventually(lambda: running.echo.running == 2)
    error = await failure(running.stub.Echo(text("x")))
    assert isinstance(error, errors.ResourceExhausted)
    assert (error.reason, error.retry_after_seconds) == ("OVERLOADED", 0.1)
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    answer = await health_pb2_grpc.HealthStub(running.channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    running.echo.release.set()
    await asyncio.gather(*waiting)
    assert await running.stub.Echo(text("x")) == text("x")
    assert running.server.admission.in_flight == 0


async def test_a_connection_has_a_limit_of_open_calls(start: Any) -> None:
    # Of the three, the health check of the channel is one.
    running = await start(max_calls_per_connection=3)
    await running.stub.Echo(text("x"))
    waiting = [asyncio.ensure_future(running.stub.Echo(text("wait"))) for _ in range(5)]
    await eventually(lambda: running.echo.running == 2)
    await asyncio.sleep(0.2)
    assert running.echo.running == 2, "the others wait at the client"
    running.echo.release.set()
    assert await asyncio.gather(*waiting) == [text("wait")] * 5


async def test_calls_are_counted_by_method_and_code(running: Any) -> None:
    await running.stub.Echo(text("x"))
    await failure(running.stub.Echo(text("not found")))
    await failure(running.stub.Echo(text("bug")))

    def handled(code: str) -> float | None:
        return running.registry.get_sample_value(
            "flywheel_rpc_handled_total", {"method": f"/{SERVICE}/Echo", "code": code}
        )

    # The answer leaves before it is counted.
    await eventually(lambda: (handled("OK"), handled("NOT_FOUND"), handled("INTERNAL")) == (1.0, 1.0, 1.0))
    assert (
        running.registry.get_sample_value("flywheel_rpc_seconds_count", {"method": f"/{SERVICE}/Echo"}) == 3.0
    )


async def test_reflection_lists_the_service(running: Any) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    async for answer in call:
        assert SERVICE in [s.name for s in answer.list_services_response.service]


async def test_open_mode_uses_the_actor_header_for_audits_only(running: Any) -> None:
    answer = await running.channel._inner.unary_unary(
        f"/{SERVICE}/Echo", Value.SerializeToString, Value.FromString
    )(text("who"), metadata=[("x-flywheel-actor", "ada")])
    assert answer.string_value == "anonymous/ada"


async def test_our_channel_sends_the_client_name(running: Any) -> None:
    assert (await running.stub.Echo(text("who"))).string_value == "anonymous/test"
