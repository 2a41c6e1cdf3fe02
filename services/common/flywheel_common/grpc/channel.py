"""Channels to peers: balanced over healthy replicas, retried on UNAVAILABLE, with deadline, identity and
trace.

A wrapper adds metadata and timeouts to the calls: gRPC's own aio client interceptors would start a task per
call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from flywheel_common.context import current_call
from flywheel_common.deadline import call_timeout
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.grpc.unready_calls import UnaryCall
from flywheel_common.telemetry.traces import tracing

__all__ = ["ClientTls", "channel", "channel_credentials", "from_rpc_error"]


@dataclass(frozen=True)
class ClientTls:
    """TLS to a peer. `cert_file` and `key_file` enable mutual TLS; without `ca_file` the system roots
    apply."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""


def service_config(*, health_check: bool = True, max_attempts: int = 4) -> str:
    """The gRPC service config of every channel, as JSON."""
    config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": max_attempts,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
    if health_check:
        config["healthCheckConfig"] = {"serviceName": ""}
    return json.dumps(config)


def channel(
    address: str,
    *,
    client_name: str,
    tls: ClientTls | None = None,
    token: str | Callable[[], str] = "",
    default_timeout_seconds: float = 10.0,
    max_message_bytes: int = 64 * 1024 * 1024,
    health_check: bool = True,
    retries: bool = True,
) -> grpc.aio.Channel:
    """A channel to `host:port`, `dns:///name:port` or `ipv4:a:p,b:p`.

    `client_name` is the actor of calls outside of a running call. The timeout of a unary call is `timeout=`,
    else the rest of the running call's budget, at most `default_timeout_seconds`. Streams have no default
    timeout. A unary call that finds no replica ready is sent to one that is not, so that the service itself
    names what it lacks. Set `health_check=False` for a server without grpc.health.v1.
    """

    def connect(health_check: bool, retries: bool) -> grpc.aio.Channel:
        config = service_config(health_check=health_check, max_attempts=4 if retries else 2)
        options = _options(client_name, max_message_bytes)
        options += [("grpc.service_config", config), ("grpc.enable_retries", 1 if retries else 0)]
        return _connect(address, tls, options)

    return _Channel(
        connect(health_check, retries),
        client_name,
        token,
        default_timeout_seconds,
        # Without retries: the call was tried before.
        unchecked=(lambda: connect(health_check=False, retries=False)) if health_check else None,
    )


def _options(client_name: str, max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.primary_user_agent", f"flywheel-{client_name}"),
    ]


def _connect(address: str, tls: ClientTls | None, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(address, channel_credentials(tls), options=options)


def channel_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """What gRPC needs, read from the files. Raises OSError."""
    read = [
        path.read_bytes() if path is not None else None for path in (tls.ca_file, tls.key_file, tls.cert_file)
    ]
    return grpc.ssl_channel_credentials(*read)


class _Channel(grpc.aio.Channel):
    """Delegates to a channel and adds metadata and timeouts to its calls. `unchecked` makes a channel to the
    same address without a health check, for calls that find no replica ready (`unready_calls`)."""

    def __init__(
        self,
        inner: grpc.aio.Channel,
        client_name: str,
        token: str | Callable[[], str],
        timeout: float,
        *,
        unchecked: Callable[[], grpc.aio.Channel] | None,
    ) -> None:
        self._inner = inner
        self._client_name = client_name
        self._token = token
        self._timeout = timeout
        self._connect_unchecked = unchecked
        self._unchecked: grpc.aio.Channel | None = None

    def unary_unary(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        target = self._inner.unary_unary(method, *args, **kwargs)
        connect = self._connect_unchecked
        if connect is None:
            return self._callable(method, target, bounded=True)

        def unchecked(*call_args: Any, **call_kwargs: Any) -> Any:
            if self._unchecked is None:
                self._unchecked = connect()
            return self._unchecked.unary_unary(method, *args, **kwargs)(*call_args, **call_kwargs)

        def start(request: Any, *, timeout: float | None, **call_kwargs: Any) -> Any:
            return UnaryCall(
                target(request, timeout=timeout, **call_kwargs),
                timeout,
                lambda left: unchecked(request, timeout=left, **call_kwargs),
            )

        return self._callable(method, start, bounded=True)

    def unary_stream(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        return self._callable(method, self._inner.unary_stream(method, *args, **kwargs), bounded=False)

    def stream_unary(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        target = self._inner.stream_unary(method, *args, **kwargs)
        call = self._callable(method, target, bounded=False)
        return lambda *args, **kwargs: _RequestStream(call(*args, **kwargs))

    def stream_stream(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        return self._callable(method, self._inner.stream_stream(method, *args, **kwargs), bounded=False)

    def _callable(self, method: Any, target: Any, bounded: bool) -> Any:
        name = method.decode() if isinstance(method, bytes) else str(method)

        def call(
            request: Any = None, *, timeout: float | None = None, metadata: Any = None, **kwargs: Any
        ) -> Any:
            if timeout is None and bounded:
                timeout = call_timeout(self._timeout)
            pairs, span = self._metadata(name)
            if metadata:
                pairs.extend(metadata)
            started = target(request, timeout=timeout, metadata=pairs, **kwargs)
            if span is not None:
                started.add_done_callback(lambda _: span.end())
            return started

        return call

    def _metadata(self, method: str) -> tuple[list[tuple[str, str]], Any]:
        running = current_call.get()
        name = (running.actor or running.principal.subject) if running is not None else self._client_name
        if running is not None and not running.actor and running.principal.subject == "anonymous":
            name = self._client_name
        pairs = [("x-flywheel-actor", _ascii(name))]
        # The text of a file ends with a line break, which no header can have.
        token = (self._token() if callable(self._token) else self._token).strip()
        if token:
            pairs.append(("authorization", f"Bearer {token}"))
        span = None
        if running is not None and running.traceparent:
            traceparent, span = tracing().start_client_span(method, running.traceparent)
            pairs.append(("traceparent", traceparent))
        return pairs, span

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)
        if self._unchecked is not None:
            await self._unchecked.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> grpc.aio.Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


_LOCAL_FAILURE = "Internal error from Core"
"""Details of the status that gRPC itself creates when it cannot send a message."""


class _RequestStream:
    """A client-streaming call that fails with the status that the peer sent.

    If the peer ends the call while a message is being sent, gRPC may raise INTERNAL instead
    (grpc/grpc#36066). Both statuses reach the done callbacks, in any order.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._status: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._remember)

    def _remember(self, call: Any) -> None:
        code, details = _result_of(call.code()), _result_of(call.details())
        if code is not grpc.StatusCode.OK and details != _LOCAL_FAILURE:
            trailing = _result_of(call.trailing_metadata())
            self._status = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except grpc.aio.AioRpcError as error:
            raise self._status or error from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def _result_of(answer: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that does not wait, such as the status of a finished call."""
    try:
        answer.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("the call is not done")


def _ascii(text: str) -> str:
    """Metadata values are printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)
