"""The whole platform: backends, databases, bucket and services."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flywheel_local import ports as port_numbers
from flywheel_local import services
from flywheel_local.backend import answers_http
from flywheel_local.backends import Backends
from flywheel_local.failure import LocalError
from flywheel_local.process import Process
from flywheel_local.restarts import Restartable
from flywheel_local.services import SERVICES, Service
from flywheel_local.stopping import undisturbed

START_SECONDS = 90.0
Report = Callable[[str], None]


class Platform:
    """A platform that runs inside a ``with`` block. ``report`` gets progress messages."""

    def __init__(
        self, directory: Path, log: Path, ports: Mapping[str, int], report: Report = lambda _: None
    ) -> None:
        self.ports = dict(ports)
        self.log = log
        self.backends = Backends(directory=directory, log=log, ports=ports)
        self.processes: dict[str, Process] = {}
        self._directory = directory
        self._report = report

    def start(self) -> None:
        """Starts the backends, then the services; returns when all of them serve."""
        for name, port in self.ports.items():
            port_numbers.require_free(name, port)
        try:
            self._report("starting PostgreSQL, Redis, S3, Kafka, Triton and Ray")
            self.backends.start()
            times = ", ".join(f"{b.name} {b.started_in_seconds:.1f}" for b in self.backends)
            self._report(f"backends are up after {self.backends.started_in_seconds:.1f} s ({times})")
            self.backends.postgres.create_databases(services.DATABASES)
            self.backends.s3.create_bucket(services.BUCKET)
            began = time.monotonic()
            for service in SERVICES:
                self.processes[service.name] = self._spawn(service)
            for service in SERVICES:
                self._wait(service)
            self._report(f"services are up after {time.monotonic() - began:.1f} s")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops the services first, so that they can close their connections."""
        for process in self.processes.values():
            process.signal(signal.SIGTERM)
        for process in self.processes.values():
            process.stop()
        self.backends.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._report("stopping everything")
        self.stop()

    @property
    def restartable(self) -> list[Restartable]:
        """Every process of the platform."""
        return [*self.backends, *(_ServiceProcess(self, service) for service in SERVICES)]

    def start_again(self, service: Service) -> None:
        """Starts a service that ended. Raises LocalError."""
        with undisturbed():
            self.processes[service.name].kill()
            self.processes[service.name] = self._spawn(service)

    @property
    def client_environment(self) -> dict[str, str]:
        return services.client_environment(self.backends, self.ports)

    def _spawn(self, service: Service) -> Process:
        state = self._directory / "state"
        (state / service.name).mkdir(parents=True, exist_ok=True)
        return Process(
            service.name,
            service.command,
            log=self.log / f"{service.name}.log",
            environment=services.settings(service, self.backends, self.ports, state),
            directory=state / service.name,
            grace_seconds=15.0,
        )

    def _wait(self, service: Service) -> None:
        process = self.processes[service.name]
        deadline = time.monotonic() + START_SECONDS
        while not self._serves(service):
            if not process.running:
                problem = f"{service.name} ended while starting (exit status {process.exit_code})"
                raise LocalError(problem, "read the log", log=process.log)
            if time.monotonic() > deadline:
                problem = f"{service.name} did not become ready within {START_SECONDS:.0f} s"
                raise LocalError(problem, "read the log", log=process.log)
            time.sleep(0.1)

    def _serves(self, service: Service) -> bool:
        if service.port is None:
            try:
                return answers_http(f"http://127.0.0.1:{self.ports[service.metrics_port]}/metrics")
            except OSError:
                return False
        return serves(f"127.0.0.1:{self.ports[service.port]}")


class _ServiceProcess:
    """A service of a platform, as `Restartable`."""

    def __init__(self, platform: Platform, service: Service) -> None:
        self.name = service.name
        self._platform = platform
        self._service = service

    @property
    def process(self) -> Process | None:
        return self._platform.processes.get(self.name)

    def start_again(self) -> None:
        self._platform.start_again(self._service)


def serves(address: str) -> bool:
    """Whether ``grpc.health.v1`` at the address reports SERVING."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
