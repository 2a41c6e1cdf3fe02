"""Budget, actor and trace that a call passes to the next service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from flywheel_common import errors
from flywheel_common.context import Call, Principal, current_call
from flywheel_common.deadline import budget, call_timeout
from flywheel_common.telemetry.traces import configure_telemetry, parse_traceparent
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.eventually import eventually

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"


def text(value: str) -> Value:
    return Value(string_value=value)


async def test_an_outgoing_call_gets_the_rest_of_the_budget(running: Any) -> None:
    with budget(0.5):
        left = (await running.stub.Echo(text("left"))).double_value
    assert 0.0 < left <= 0.5
    assert (await running.stub.Echo(text("left"))).double_value == pytest.approx(10.0, abs=0.5)


async def test_no_call_is_sent_without_budget(running: Any) -> None:
    current_call.set(Call("m", deadline=time.monotonic() - 1))
    with pytest.raises(errors.DeadlineExceeded):
        await running.stub.Echo(text("x"))


def test_call_timeouts_keep_a_reserve_and_never_grow() -> None:
    assert call_timeout(5.0) == 5.0
    with budget(10.0):
        assert call_timeout(5.0) == 5.0
    with budget(1.0):
        assert 0.6 < call_timeout(5.0) <= 0.7
        with budget(100.0):
            assert call_timeout(5.0) <= 0.7
    with budget(0.2), pytest.raises(errors.DeadlineExceeded):
        assert 0 < call_timeout(5.0) <= 0.1
        with budget(-1.0):
            call_timeout(5.0)


async def test_the_actor_is_passed_to_the_next_service(running: Any) -> None:
    current_call.set(Call("m", Principal("trainer"), "ada"))
    assert (await running.stub.Echo(text("who"))).string_value == "anonymous/ada"


async def test_an_explicit_timeout_wins(running: Any) -> None:
    with budget(5.0):
        # gRPC rounds a timeout up on the wire.
        assert (await running.stub.Echo(text("left"), timeout=0.3)).double_value < 0.4


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing = configure_telemetry("test", ratio=0.0, exporter=exporter)
    yield exporter
    tracing.close()
    configure_telemetry("test")


async def test_a_sampled_call_has_a_client_and_a_server_span_of_one_trace(
    spans: InMemorySpanExporter, start: Any
) -> None:
    running = await start()
    current_call.set(Call("m", traceparent=PARENT))
    await running.stub.Echo(text("x"))
    with pytest.raises(Exception, match="NOT_FOUND"):
        await running.stub.Echo(text("not found"))
    # The span of the server ends after its client has the response.
    await eventually(lambda: len(spans.get_finished_spans()) >= 3)
    by_kind = {(s.kind.name, s.status.status_code.name): s for s in spans.get_finished_spans()}
    assert set(by_kind) == {("CLIENT", "UNSET"), ("SERVER", "UNSET"), ("SERVER", "ERROR")}
    server, client = by_kind["SERVER", "UNSET"], by_kind["CLIENT", "UNSET"]
    assert f"{server.context.trace_id:032x}" == PARENT[3:35]
    assert server.parent is not None
    assert client.parent is not None
    assert f"{client.parent.span_id:016x}" == PARENT[36:52]


async def test_calls_that_are_not_sampled_have_no_span(spans: InMemorySpanExporter, start: Any) -> None:
    running = await start()
    await running.stub.Echo(text("x"))
    current_call.set(Call("m", traceparent=UNSAMPLED))
    await running.stub.Echo(text("x"))
    assert spans.get_finished_spans() == ()


async def test_sampling_follows_the_ratio(start: Any) -> None:
    exporter = InMemorySpanExporter()
    tracing = configure_telemetry("test", ratio=1.0, exporter=exporter)
    running = await start()
    await running.stub.Echo(text("x"))
    await eventually(exporter.get_finished_spans)
    assert [s.kind.name for s in exporter.get_finished_spans()] == ["SERVER"]
    tracing.close()
    configure_telemetry("test")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        "00-1-2-3",
        "00-" + "0" * 32 + "-" + "0" * 16 + "-01",
        "00-" + "g" * 32 + "-" + "1" * 16 + "-01",
    ],
)
def test_malformed_trace_contexts_are_ignored(bad: str) -> None:
    assert parse_traceparent(bad) is None


async def test_health_watch_works_while_traced(spans: InMemorySpanExporter, start: Any) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    running = await start()
    call = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
    running.server.health.set_ready(False)
    assert (await call.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    call.cancel()
