"""A service with all four kinds of RPC, for tests and measurements of the gRPC server.

It echoes `types.v1.Value` messages; special texts make it fail or wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from flywheel_common.context import actor, current_principal, left_seconds
from flywheel_common.errors import InvalidArgument, NotFound, Unavailable
from flywheel_protos.types.v1.value_pb2 import Value

SERVICE = "flywheel.testing.v1.EchoService"


class NoSuchThing(NotFound):
    reason = "NO_SUCH_THING"


class BackendUnavailable(Unavailable):
    reason = "BACKEND_UNAVAILABLE"


class StreamEnds(NotFound):
    reason = "STREAM_ENDS"


class Negative(InvalidArgument):
    reason = "NEGATIVE"


class Echo:
    """`running` counts running calls; `release` lets "wait" calls continue."""

    def __init__(self) -> None:
        self.running = 0
        self.cancelled = 0
        self.refused = 0
        self.release = asyncio.Event()

    async def Echo(self, request: Value, context: Any) -> Value:
        self.running += 1
        try:
            return await self._answer(request, context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: Value, context: Any) -> Value:
        match request.string_value:
            case "not found":
                raise NoSuchThing("There is no such thing: make it first.", thing="x")
            case "unavailable":
                self.refused += 1
                raise BackendUnavailable("The backend does not answer now: try again.")
            case "bug":
                raise RuntimeError("the password is hunter2")
            case "abort":
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "by hand")
            case "wait":
                await self.release.wait()
            case "timeout":
                raise TimeoutError
            case "who":
                return Value(string_value=f"{current_principal().subject}/{actor()}")
            case "left":
                left = left_seconds()
                return Value(double_value=-1.0 if left is None else left)
        return request

    async def Count(self, request: Value, context: Any) -> AsyncIterator[Value]:
        for i in range(request.int64_value):
            yield Value(int64_value=i)
        if request.string_value == "fail":
            raise StreamEnds("The stream ends here.")

    async def Write(self, request: Value, context: Any) -> None:
        for i in range(request.int64_value):
            await context.write(Value(int64_value=i))

    async def Sum(self, request_iterator: AsyncIterator[Value], context: Any) -> Value:
        return Value(int64_value=sum([value.int64_value async for value in request_iterator]))

    async def Double(self, request_iterator: AsyncIterator[Value], context: Any) -> AsyncIterator[Value]:
        async for value in request_iterator:
            if value.int64_value < 0:
                raise Negative("Send positive numbers.")
            yield Value(int64_value=2 * value.int64_value)


def add_echo(servicer: Echo, server: Any) -> None:
    """Like a generated `add_…Servicer_to_server`."""
    codec = {"request_deserializer": Value.FromString, "response_serializer": Value.SerializeToString}
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(servicer.Echo, **codec),
        "Count": grpc.unary_stream_rpc_method_handler(servicer.Count, **codec),
        "Write": grpc.unary_stream_rpc_method_handler(servicer.Write, **codec),
        "Sum": grpc.stream_unary_rpc_method_handler(servicer.Sum, **codec),
        "Double": grpc.stream_stream_rpc_method_handler(servicer.Double, **codec),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


class EchoStub:
    """Like a generated stub."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        codec: dict[str, Any] = {
            "request_serializer": Value.SerializeToString,
            "response_deserializer": Value.FromString,
            "_registered_method": True,
        }
        self.Echo = channel.unary_unary(f"/{SERVICE}/Echo", **codec)
        self.Count = channel.unary_stream(f"/{SERVICE}/Count", **codec)
        self.Write = channel.unary_stream(f"/{SERVICE}/Write", **codec)
        self.Sum = channel.stream_unary(f"/{SERVICE}/Sum", **codec)
        self.Double = channel.stream_stream(f"/{SERVICE}/Double", **codec)
