"""Stand-ins for the services around the registry: a monitor, a feature service, and gateways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flywheel_protos.feature.v1 import definitions_pb2, feature_pb2, feature_pb2_grpc
from flywheel_protos.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.step_evidence import NOTHING, Counted

SHADOW, CANARY = monitor_pb2.COMPARISON_MODE_SHADOW, monitor_pb2.COMPARISON_MODE_CANARY


class FakeMonitor(monitor_pb2_grpc.MonitorServiceServicer, health_pb2_grpc.HealthServicer):
    """A monitor that judges the counts that a test sets by mode in `answers`; `requests` records every call.

    `before(request, context)` runs before each answer, to delay or refuse it.
    """

    def __init__(self) -> None:
        self.answers: dict[int, Counted] = {}
        self.requests: list[monitor_pb2.CompareVariantsRequest] = []
        self.generation = 0
        """Generation of all answers; 0: that of the request."""
        self.address = ""
        self.before: Callable[[Any, Any], Awaitable[None]] | None = None

    async def CompareVariants(self, request: Any, context: Any) -> monitor_pb2.CompareVariantsResponse:
        self.requests.append(request)
        if self.before is not None:
            await self.before(request, context)
        answer = self.answers.get(request.mode, NOTHING).answer(request)
        answer.generation = self.generation or answer.generation
        return answer

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        while not context.cancelled():
            await asyncio.sleep(0.1)


class FakeFeatures(feature_pb2_grpc.FeatureServiceServicer, health_pb2_grpc.HealthServicer):
    """A feature service with the feature sets `sets`: name → schema. `down`: calls are UNAVAILABLE."""

    def __init__(self) -> None:
        self.sets: dict[str, list[value_pb2.Field]] = {}
        self.down = False
        self.address = ""

    async def GetFeatureSet(self, request: Any, context: Any) -> feature_pb2.GetFeatureSetResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        if request.name not in self.sets:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown")
        found = definitions_pb2.FeatureSet(name=request.name, schema=self.sets[request.name])
        return feature_pb2.GetFeatureSetResponse(feature_set=found)

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        while not context.cancelled():
            await asyncio.sleep(0.1)


@asynccontextmanager
async def serving_features() -> AsyncIterator[FakeFeatures]:
    """Serve FakeFeatures on a free port."""
    fake, server = FakeFeatures(), grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(fake, server)
    health_pb2_grpc.add_HealthServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(0)


def comparison(**changes: Any) -> Counted:
    """Return the counts of a step that passes, with changes."""
    passes = Counted(
        delta=-0.02, error=0.006, labelled=1000, predictions=2000, champion_predictions=2000, days=3.0
    )
    return replace(passes, **changes)


@asynccontextmanager
async def serving_monitor(port: int = 0) -> AsyncIterator[FakeMonitor]:
    """Serve a FakeMonitor on a port; 0 picks a free one."""
    fake, server = FakeMonitor(), grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    monitor_pb2_grpc.add_MonitorServiceServicer_to_server(fake, server)
    health_pb2_grpc.add_HealthServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(0)


class FakeGateway:
    """A gateway that applies each change of the desired state after `lag` seconds and reports every 50 ms."""

    def __init__(self, stub: Any, name: str, lag: float = 0.0) -> None:
        self._stub = stub
        self._name = name
        self._lag = lag
        self.states: list[registry_pb2.WatchServingResponse] = []
        self.applied: dict[str, int] = {}
        self.ready: dict[str, list[str]] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._report())

    async def _watch(self) -> None:
        request = registry_pb2.WatchServingRequest(gateway_id=self._name)
        async for state in self._stub.WatchServing(request):
            self.states.append(state)
            await asyncio.sleep(self._lag)
            changed = {model.model: model.generation for model in state.models}
            self.applied = changed if state.snapshot else {**self.applied, **changed}
            ready = {
                model.model: [
                    served.release
                    for served in (model.champion, model.challenger, *model.warm)
                    if served.release
                ]
                for model in state.models
            }
            self.ready = ready if state.snapshot else {**self.ready, **ready}
            for name in state.removed_models:
                self.applied.pop(name, None)
                self.ready.pop(name, None)

    async def _report(self) -> None:
        while True:
            models = [
                model_pb2.ObservedModel(model=m, generation=g, ready_releases=self.ready[m])
                for m, g in self.applied.items()
            ]
            request = registry_pb2.ReportServingRequest(gateway_id=self._name, models=models)
            await self._stub.ReportServing(request)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running_gateway(stub: Any, name: str, lag: float = 0.0) -> AsyncIterator[FakeGateway]:
    """Run a FakeGateway against a registry."""
    fake = FakeGateway(stub, name, lag)
    task = asyncio.create_task(fake.run())
    try:
        yield fake
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, BaseExceptionGroup, grpc.RpcError):
            await task
