"""The wrapper around every method: authenticate, authorize, admit, parse, run, map errors, measure, log.

Handlers are wrapped once, at registration, so that calls do not pass through a chain of interceptors. They
are registered without a request deserializer: credentials are checked before the request is parsed, and
malformed bytes become INVALID_ARGUMENT instead of UNKNOWN.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.trace import Span, Status, StatusCode

from flywheel_common.context import ANONYMOUS, Call, current_call, left_seconds
from flywheel_common.grpc.admission import Admission
from flywheel_common.grpc.auth import PUBLIC, Authenticator, Permissions, authorize
from flywheel_common.grpc.error_details import trailing_metadata
from flywheel_common.grpc.errors import MalformedRequest, MessageTooLarge
from flywheel_common.grpc.leaving_error import leaving_error
from flywheel_common.telemetry.logs import RpcLog
from flywheel_common.telemetry.metrics import RedMetrics
from flywheel_common.telemetry.traces import Tracing

_MAX_ACTOR = 200
RETRY_SECONDS = 1.0
NO_RETRY = ("grpc-retry-pushback-ms", "-1")
"""Sent when less than RETRY_SECONDS are left: a retry would end as DEADLINE_EXCEEDED and hide the first
error."""


class Pipeline:
    """Wraps the handlers of a service.

    `deadlines` overrides the default budget in seconds per full method name; None = unbounded. Streams have
    no default budget. `request_bytes` has limits per full method name, above which requests are refused
    before they are parsed; the limit of all messages is the transport's.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        permissions: Permissions,
        admission: Admission,
        metrics: RedMetrics,
        tracing: Tracing,
        rpc_log: RpcLog | None,
        default_deadline_seconds: float = 30.0,
        deadlines: Mapping[str, float | None] | None = None,
        request_bytes: Mapping[str, int] | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._permissions = permissions
        self._admission = admission
        self._metrics = metrics
        self._tracing = tracing
        self._rpc_log = rpc_log
        self._default_deadline = default_deadline_seconds
        self._deadlines = deadlines or {}
        self._request_bytes = request_bytes or {}

    def wrap(self, method: str, handler: Any) -> Any:
        """The wrapped handler of a full method name, for all four kinds of RPC."""
        parse = _Parse(handler.request_deserializer or bytes, self._request_bytes.get(method))
        if handler.request_streaming:
            behavior = handler.stream_stream if handler.response_streaming else handler.stream_unary
        else:
            behavior = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if handler.response_streaming:
            wrapped = self._streaming(method, behavior, parse, handler.request_streaming)
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
        else:
            wrapped = self._single(method, behavior, parse, handler.request_streaming)
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
        return make(wrapped, request_deserializer=None, response_serializer=handler.response_serializer)

    def _single(self, method: str, behavior: Any, parse: _Parse, request_streaming: bool) -> Any:
        default = self._deadlines.get(method, None if request_streaming else self._default_deadline)
        mutates = _carries_request_id(parse.parse)

        async def answer(raw: Any, context: Any) -> Any:
            state = _Running(method, request_streaming)
            try:
                call = await self._enter(state, context)
                if request_streaming:
                    request = parse.each(context)
                else:
                    request = state.request = parse(raw)
                    if mutates:
                        call.request_id = getattr(request, "request_id", "")
                if call.deadline is None and default is not None:
                    call.deadline = time.monotonic() + default
                    async with asyncio.timeout(default):
                        return await behavior(request, context)
                return await behavior(request, context)
            except BaseException as error:  # noqa: BLE001 - _fail always raises
                raw = request = None  # see _forget_requests
                await self._fail(state, error, context)
            finally:
                self._leave(state)

        return answer

    def _streaming(self, method: str, behavior: Any, parse: _Parse, request_streaming: bool) -> Any:
        yields = inspect.isasyncgenfunction(behavior)

        async def answers(raw: Any, context: Any) -> AsyncIterator[Any]:
            state = _Running(method, True)
            try:
                call = await self._enter(state, context)
                if request_streaming:
                    request = parse.each(context)
                else:
                    request = state.request = parse(raw)
                    call.request_id = getattr(request, "request_id", "")
                produced = behavior(request, context)
                if yields or hasattr(produced, "__aiter__"):
                    async for message in produced:
                        yield message
                else:
                    await produced
            except GeneratorExit:
                state.code = "CANCELLED"
                raise
            except BaseException as error:  # noqa: BLE001 - _fail always raises
                raw = request = None  # see _forget_requests
                await self._fail(state, error, context)
            finally:
                self._leave(state)

        return answers

    async def _enter(self, state: _Running, context: Any) -> Call:
        authorization = traceparent = named = ""
        metadata = context.invocation_metadata() or ()
        for key, value in metadata:
            if key == "traceparent":
                traceparent = value
            elif key == "authorization":
                authorization = value
            elif key == "x-flywheel-actor":
                named = value[:_MAX_ACTOR]
        traceparent, state.span = self._tracing.start_server_span(state.method, traceparent)
        call = state.call = Call(state.method, ANONYMOUS, "", None, traceparent)
        call.metadata = metadata
        current_call.set(call)
        if self._authenticator.open:
            call.actor = named
        if authorization or not self._authenticator.open:
            permission = self._permissions.get(state.method)
            if permission != PUBLIC:
                call.principal = await self._authenticator.authenticate(authorization)
                # In open mode only a token of the service's own gives another principal than ANONYMOUS.
                if not (self._authenticator.open and call.principal is ANONYMOUS):
                    call.actor = call.principal.subject
                    authorize(call.principal, permission, state.method)
        left = context.time_remaining()
        if left is not None:
            call.deadline = state.started + left
        self._admission.enter(state.streaming)
        state.admitted = True
        return call

    async def _fail(self, state: _Running, error: BaseException, context: Any) -> None:
        """Ends the call with the status of the error. Always raises."""
        if isinstance(error, asyncio.CancelledError):
            left = context.time_remaining()
            state.code = "DEADLINE_EXCEEDED" if left is not None and left <= 0 else "CANCELLED"
            raise error
        if isinstance(error, grpc.aio.AbortError):
            state.code = _code_name(context.code())
            raise error
        if not isinstance(error, Exception):
            raise error
        mapped = leaving_error(error, state.request)
        state.code, state.reason = mapped.code.name, mapped.reason
        metadata: tuple[tuple[str, str | bytes], ...] = trailing_metadata(mapped)
        left = left_seconds()
        if left is not None and left < RETRY_SECONDS:
            metadata = (*metadata, NO_RETRY)
        _forget_requests(state, error)
        await context.abort(mapped.code, mapped.message, metadata)

    def _leave(self, state: _Running) -> None:
        if state.admitted:
            self._admission.leave(state.streaming)
        seconds = time.monotonic() - state.started
        self._metrics.observe(state.method, state.code, seconds)
        call = state.call
        if state.span is not None:
            state.span.set_attribute("rpc.grpc.status_code", state.code)
            if state.code != "OK":
                state.span.set_status(Status(StatusCode.ERROR, state.reason or state.code))
            state.span.end()
        if self._rpc_log is not None and call is not None:
            self._rpc_log.write(
                time.time(),
                state.method,
                principal=call.actor or call.principal.subject,
                code=state.code,
                seconds=seconds,
                request_id=call.request_id,
                trace_id=call.traceparent[3:35],
                reason=state.reason,
            )


class _Parse:
    """Parses the requests of a method; refuses one above `limit_bytes` before that. None: no limit."""

    __slots__ = ("limit_bytes", "parse")

    def __init__(self, parse: Any, limit_bytes: int | None) -> None:
        self.parse = parse
        self.limit_bytes = limit_bytes

    def __call__(self, raw: bytes) -> Any:
        if self.limit_bytes is not None and len(raw) > self.limit_bytes:
            raise MessageTooLarge(
                f"The request has {len(raw)} bytes, the limit is {self.limit_bytes}: split it.",
                limit_bytes=self.limit_bytes,
            )
        try:
            return self.parse(raw)
        except (DecodeError, ValueError):
            raise MalformedRequest(
                "The bytes are not the request message of this method: "
                "check that client and server use the same protos.",
            ) from None

    async def each(self, context: Any) -> AsyncIterator[Any]:
        """The parsed messages of a stream.

        They are read one by one: the iterator of gRPC, and a variable here, would keep a message until the
        next one is asked for, also while the call waits.
        """
        while (raw := await context.read()) is not grpc.aio.EOF:
            taking, raw = [self(raw)], None
            yield taking.pop()


class _Running:
    """The state of one call."""

    __slots__ = ("admitted", "call", "code", "method", "reason", "request", "span", "started", "streaming")

    def __init__(self, method: str, streaming: bool) -> None:
        self.method = method
        self.streaming = streaming
        self.started = time.monotonic()
        self.admitted = False
        self.code = "OK"
        self.reason = ""
        self.request: Any = None
        self.span: Span | None = None
        self.call: Call | None = None


def _forget_requests(state: _Running, error: BaseException) -> None:
    """Drops what refers to the request.

    An aborted call and its exception refer to each other, so that both, and the frames of their tracebacks,
    stay until the garbage collector runs: large requests would fill the memory.
    """
    state.request = None
    error.__traceback__ = error.__context__ = error.__cause__ = None


def _carries_request_id(parse: Any) -> bool:
    """Whether the request type has a request_id. Checked once, because a missing attribute costs an exception
    per call."""
    descriptor = getattr(getattr(parse, "__self__", None), "DESCRIPTOR", None)
    return descriptor is None or "request_id" in descriptor.fields_by_name


def _code_name(code: Any) -> str:
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((c.name for c in grpc.StatusCode if c.value[0] == code), "UNKNOWN")
