"""The gRPC server of a service, with health checks, reflection and graceful shutdown.

server = Server(
    settings,
    servicers=[(registry_pb2_grpc.add_RegistryServiceServicer_to_server, servicer)],
    full_service_names=["flywheel.registry.v1.RegistryService"],
    permissions=PERMISSIONS,
)
server.add_background("outbox relay", relay.run)
server.health.set_ready()
await server.run_until_signal()
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import _async as reflection_aio
from grpc_reflection.v1alpha import reflection_pb2_grpc
from prometheus_client import REGISTRY, CollectorRegistry

from flywheel_common.config import ServiceSettings, split_address
from flywheel_common.grpc import health as health_module
from flywheel_common.grpc.accepting import Acceptors
from flywheel_common.grpc.admission import Admission
from flywheel_common.grpc.auth import AUTHENTICATED, Authenticator, Permissions, authenticator
from flywheel_common.grpc.health import Health
from flywheel_common.grpc.overload import LimitedHandlers, LoadLimit
from flywheel_common.grpc.pipeline import Pipeline
from flywheel_common.process.supervision import RESTARTS, RestartRule
from flywheel_common.process.worker import PortTaken, Worker
from flywheel_common.telemetry.logs import RpcLog, get_logger
from flywheel_common.telemetry.metrics import red_metrics
from flywheel_common.telemetry.traces import tracing

log = get_logger(__name__)

Metadata = tuple[tuple[str, str | bytes], ...]
AddServicer = Callable[[Any, Any], None]
_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
_REFLECTION_METHOD = f"/{_REFLECTION}/ServerReflectionInfo"


class Server(Worker):
    """Serves `servicers` on `settings.listen`.

    `health` starts as NOT_SERVING: call `health.set_ready()` when the store of the service is ready, or give
    `readiness`, which is called every second. `port` is known after `start`. `permissions` maps methods to
    roles. `deadlines` overrides the default budget per full method name.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        servicers: Sequence[tuple[AddServicer, Any]],
        full_service_names: Sequence[str],
        permissions: Permissions | None = None,
        deadlines: Mapping[str, float | None] | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        readiness: Callable[[], Any] | None = None,
        registry: CollectorRegistry = REGISTRY,
        restarts: RestartRule = RESTARTS,
        authenticate: Callable[[Authenticator], Authenticator] = lambda selected: selected,
        options: Sequence[tuple[str, int]] = (),
        never_refused: Callable[[Metadata], bool] = lambda _: False,
        request_bytes: Mapping[str, int] | None = None,
    ) -> None:
        """`authenticate` may wrap the authenticator that the settings select, for tokens of the service's
        own. `options` are further gRPC channel arguments. `request_bytes` has smaller limits than
        `settings.max_message_bytes` per full method name: larger requests are received, and refused unparsed.
        Calls whose metadata is `never_refused` are parsed also while the event loop is late."""
        super().__init__(settings, registry=registry, restarts=restarts)
        self.health = Health(full_service_names)
        self.methods: list[str] = []
        self.port = 0
        admission = self.admission = Admission(settings.max_concurrent_rpcs, settings.max_concurrent_streams)
        metrics = red_metrics(registry)
        # The metrics live as long as the process. They must not keep the server alive: gRPC's destructor of a
        # server that never started (its port was taken) writes to standard error when it runs at interpreter
        # exit.
        metrics.in_flight.set_function(lambda: admission.in_flight)
        self._rpc_log = RpcLog(_short_name(full_service_names)) if settings.log_rpcs else None
        self._pipeline = Pipeline(
            authenticator=authenticate(authenticator(settings)),
            permissions={_REFLECTION_METHOD: AUTHENTICATED, **(permissions or {})},
            admission=self.admission,
            metrics=metrics,
            tracing=tracing(),
            rpc_log=self._rpc_log,
            default_deadline_seconds=settings.default_deadline_seconds,
            deadlines=deadlines,
            request_bytes=request_bytes,
        )
        self._server = grpc.aio.server(
            interceptors=tuple(interceptors), options=[*_options(settings), *options]
        )
        load_limit = self.load_limit = LoadLimit(settings.max_concurrent_rpcs, settings.max_late_seconds)
        self._limited = settings.max_late_seconds > 0
        self._acceptors: Acceptors | None = None
        self._handlers: list[grpc.GenericRpcHandler] = []

        def limited(service: str, handlers: Mapping[str, Any]) -> grpc.GenericRpcHandler:
            return LimitedHandlers(
                service,
                handlers,
                load_limit,
                lambda method: metrics.observe(method, grpc.StatusCode.RESOURCE_EXHAUSTED.name, 0.0),
                never_refused,
            )

        for add, servicer in servicers:
            add(servicer, _Registrar(self._pipeline, self.methods, self._handlers, limited))
        health_pb2_grpc.add_HealthServicer_to_server(
            self.health, _Registrar(None, [], self._handlers, grpc.method_handlers_generic_handler)
        )
        if settings.reflection:
            names = (*full_service_names, health_module.SERVICE_NAME, _REFLECTION)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
                reflection_aio.ReflectionServicer(names),
                _Registrar(self._pipeline, [], self._handlers, grpc.method_handlers_generic_handler),
            )
        self._server.add_generic_rpc_handlers(tuple(self._handlers))
        if self._limited:
            self.add_background("load limit", load_limit.run)
        self._drained = False
        if readiness is not None:
            self.add_background("readiness", lambda: self._watch(readiness))

    async def start(self) -> None:
        """Binds the ports and serves. Raises PortTaken."""
        await super().start()
        address = self._settings.listen
        credentials = _credentials(self._settings)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            self.port = 0
        if self.port == 0:
            await super().stop()
            raise PortTaken(address, "listen")
        await self._server.start()
        if self._limited:
            self._acceptors = Acceptors(self._server, self._handlers, self.load_limit.backlog)
        log.info(
            "serving", address=f"{split_address(address)[0]}:{self.port}", metrics_port=self.metrics_port
        )

    async def drain(self) -> None:
        """Reports NOT_SERVING and keeps answering for `drain_seconds`, so that clients switch to other
        replicas."""
        if not self._drained:
            self._drained = True
            self.health.drain()
            await asyncio.sleep(self._settings.drain_seconds)

    async def stop(self) -> None:
        """Refuses new calls, lets running ones finish within `grace_seconds`, and closes."""
        self.health.drain()
        await self._server.stop(self._settings.grace_seconds)
        if self._acceptors is not None:
            await self._acceptors.ended()
        if self._rpc_log is not None:
            self._rpc_log.flush()
        await super().stop()

    async def _watch(self, readiness: Callable[[], Any]) -> None:
        while True:
            try:
                async with asyncio.timeout(2.0):
                    ready = readiness()
                    if hasattr(ready, "__await__"):
                        ready = await ready
            except Exception:  # noqa: BLE001 - any failure means not ready
                ready = False
            self.health.set_ready(bool(ready))
            await asyncio.sleep(1.0)


class _Registrar:
    """Takes the place of the server in generated `add_…Servicer_to_server` functions; wraps every handler, if
    there is a pipeline, and adds to `methods` and `found`."""

    def __init__(
        self,
        pipeline: Pipeline | None,
        methods: list[str],
        found: list[grpc.GenericRpcHandler],
        make: Callable[[str, Mapping[str, Any]], grpc.GenericRpcHandler],
    ) -> None:
        self._pipeline = pipeline
        self._methods = methods
        self._found = found
        self._make = make

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Does nothing: the same handlers come by name in `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        wrapped = {
            name: handler if self._pipeline is None else self._pipeline.wrap(f"/{service}/{name}", handler)
            for name, handler in handlers.items()
        }
        self._methods.extend(f"/{service}/{name}" for name in handlers)
        self._found.append(self._make(service, wrapped))


def _options(settings: ServiceSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


def _credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    roots = settings.tls_client_ca_file.read_bytes() if settings.tls_client_ca_file is not None else None
    pair = (settings.tls_key_file.read_bytes(), settings.tls_cert_file.read_bytes())
    return grpc.ssl_server_credentials([pair], root_certificates=roots, require_client_auth=roots is not None)


def _short_name(full_service_names: Sequence[str]) -> str:
    """`flywheel.registry.v1.RegistryService` → `flywheel-registry`."""
    for name in full_service_names:
        parts = name.split(".")
        if parts[0] == "flywheel" and len(parts) > 1:
            return f"flywheel-{parts[1]}"
    return "flywheel"
