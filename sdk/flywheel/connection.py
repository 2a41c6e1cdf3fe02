"""Channels to the five services, resource names, request ids, timestamps, and waiting for jobs."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel.errors import JobFailedError
from flywheel_common.grpc.channel import ClientTls, channel
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_protos.feature.v1 import feature_pb2_grpc
from flywheel_protos.inference.v1 import inference_pb2_grpc
from flywheel_protos.monitor.v1 import monitor_pb2_grpc
from flywheel_protos.registry.v1 import registry_pb2_grpc
from flywheel_protos.trainer.v1 import trainer_pb2_grpc
from flywheel_protos.types.v1 import job_pb2

PORTS = {
    "feature": 7101,
    "registry": 7102,
    "trainer": 7103,
    "inference": 7104,
    "monitor": 7105,
}
STUBS: dict[str, Callable[[grpc.aio.Channel], Any]] = {
    "feature": feature_pb2_grpc.FeatureServiceStub,
    "registry": registry_pb2_grpc.RegistryServiceStub,
    "trainer": trainer_pb2_grpc.TrainerServiceStub,
    "inference": inference_pb2_grpc.InferenceServiceStub,
    "monitor": monitor_pb2_grpc.MonitorServiceStub,
}


class Service:
    """A stub whose unary calls raise FlywheelError instead of grpc.RpcError."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._stub, method)

        def start(
            request: Any,
            *,
            timeout: float | None = None,
            metadata: Sequence[tuple[str, str]] | None = None,
        ) -> Any:
            started = call(request, timeout=timeout, metadata=metadata)
            return _answer(started) if isinstance(started, Awaitable) else started

        return start


async def _answer(call: Any) -> Any:
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


class Connection:
    """Open inside `async with`. An address comes from the arguments, else from FLYWHEEL_<SERVICE>_ADDRESS,
    else it is the port of a local platform. Short names are names inside `project`. The bearer token is
    `token`, else FLYWHEEL_TOKEN; a function is called before each call. Without `tls` nothing is encrypted.
    """

    feature: Service
    registry: Service
    trainer: Service
    inference: Service
    monitor: Service

    def __init__(
        self,
        project: str = "default",
        *,
        timeout: float = 30.0,
        token: str | Callable[[], str] = "",
        tls: ClientTls | None = None,
        **addresses: str,
    ) -> None:
        self.project, self.parent = project, f"projects/{project}"
        self._timeout, self._tls = timeout, tls
        self._token = token or os.environ.get("FLYWHEEL_TOKEN", "")
        self._addresses = {
            name: addresses.get(name)
            or os.environ.get(f"FLYWHEEL_{name.upper()}_ADDRESS", f"127.0.0.1:{port}")
            for name, port in PORTS.items()
        }
        self._channels: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> Self:
        for name, make in STUBS.items():
            opened = channel(
                self._addresses[name],
                client_name="flywheel-sdk",
                tls=self._tls,
                token=self._token,
                default_timeout_seconds=self._timeout,
            )
            self._channels.append(opened)
            setattr(self, name, Service(make(opened)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for opened in self._channels:
            await opened.close()

    def path(self, collection: str, name: str) -> str:
        """`projects/{project}/{collection}/{name}`; a full name is returned unchanged."""
        return name if name.startswith("projects/") else f"{self.parent}/{collection}/{name}"

    def full(self, name: str) -> str:
        """`views/facts` with the project before it; a full name is returned unchanged."""
        return name if name.startswith("projects/") else f"{self.parent}/{name}"

    async def answers(self, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The messages of a streaming call, whose errors are FlywheelErrors."""
        try:
            async for message in stream:
                yield message
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def wait(
        self,
        watch: AsyncIterator[Any],
        field: str,
        progress: Callable[[Any], None] | None = None,
    ) -> Any:
        """Waits until a watched job has SUCCEEDED; returns its last message. Raises JobFailedError."""
        item = None
        async for message in self.answers(watch):
            item = getattr(message, field)
            if progress is not None:
                progress(item)
        if item is None or item.state != job_pb2.JOB_STATE_SUCCEEDED:
            name, reason, text = (
                (item.name, item.error_reason, item.error_message) if item else ("job", "NO_ANSWER", "")
            )
            raise JobFailedError(name, reason, text)
        return item


def request_id() -> str:
    """A new idempotency key: send the same one again when the request is retried."""
    return uuid.uuid4().hex


def timestamp(moment: datetime) -> Timestamp:
    """A protobuf timestamp. A naive datetime counts as UTC."""
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def now() -> datetime:
    """The current time in UTC, with its time zone."""
    return datetime.now(UTC)
