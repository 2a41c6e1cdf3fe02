"""The health service `grpc.health.v1`: one status per service name, with any number of watchers.

The servicer of grpcio-health-checking shares one condition per name and drops it when the first watcher
leaves; then the other watchers never learn that the server drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVICE_NAME = "grpc.health.v1.Health"


class Health(health_pb2_grpc.HealthServicer):
    """The status of each service. The empty name is the whole process: SERVING while every service is
    SERVING. After `drain` no status becomes SERVING again."""

    def __init__(self, services: Iterable[str] = ()) -> None:
        self._statuses: dict[str, int] = dict.fromkeys((*services, ""), NOT_SERVING)
        self._draining = False
        self._changed = asyncio.Event()

    def set_ready(self, ready: bool = True, service: str | None = None) -> None:
        """Sets the status of a service; None = all. Ready = the process and its own store, not peers or
        brokers."""
        if self._draining:
            return
        status = SERVING if ready else NOT_SERVING
        for name in [n for n in self._statuses if n] if service is None else [service]:
            self._statuses[name] = status
        named = [status for name, status in self._statuses.items() if name]
        if not named:
            self._statuses[""] = status
        else:
            self._statuses[""] = SERVING if all(s == SERVING for s in named) else NOT_SERVING
        self._notify()

    def drain(self) -> None:
        """Sets every status to NOT_SERVING for ever."""
        self._draining = True
        for name in self._statuses:
            self._statuses[name] = NOT_SERVING
        self._notify()

    def status(self, service: str = "") -> int:
        return self._statuses.get(service, SERVICE_UNKNOWN)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"This process has no service {request.service!r}."
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last: int | None = None
        while True:
            changed, status = self._changed, self.status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
                continue
            await changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
