"""PostgreSQL is stopped again and again under load: no process of a service ends, and all answer afterwards.

One stop is a kill and one is not. `make acceptance` has 4 stops, `make soak SUITE=postgres` has 100.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import urllib.request
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

import flywheel as fw
from flywheel_local import ports as port_numbers
from flywheel_local import services
from flywheel_local.backends import Backends
from flywheel_local.kafka import Kafka
from flywheel_local.platform import serves
from flywheel_local.postgres import Postgres
from flywheel_local.process import Process
from flywheel_local.s3 import S3
from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from flywheel_protos.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from flywheel_protos.registry.v1 import registry_pb2, registry_pb2_grpc
from flywheel_protos.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from tests.support.eventually import eventually

STOPS = int(os.environ.get("FLYWHEEL_SOAK_STOPS", "2"))
CALLERS = 2
"""Concurrent callers of each kind of call."""
CALLS_PER_SECOND = 200
"""Fewer calls before a stop prove nothing."""
PROJECT = "projects/default"
T0 = datetime(2013, 1, 1, tzinfo=UTC)
SCHEMA = {"carrier": fw.STRING, "at": fw.TIMESTAMP, "delay": fw.FLOAT64}
Call = Callable[[int], Awaitable[object]]


class Services:
    """The processes of all services on real backends, without Triton and Ray."""

    def __init__(self, processes: dict[str, Process], ports: dict[str, int]) -> None:
        self.processes = processes
        self.pids = {name: process.pid for name, process in processes.items()}
        self._ports = ports

    def address(self, service: str) -> str:
        return f"127.0.0.1:{self._ports[service]}"

    def ended(self) -> dict[str, str]:
        """Name → end of the log, of each process that ended."""
        return {
            name: process.log.read_text(errors="replace")[-3000:]
            for name, process in self.processes.items()
            if not process.running
        }

    async def all_serve(self) -> bool:
        assert not self.ended()
        found = [await asyncio.to_thread(serves, self.address(name)) for name in services.NAMES]
        return all(found)

    def background_failures(self) -> dict[str, list[str]]:
        """Process → background tasks that failed."""
        failed = {}
        for service in services.SERVICES:
            url = f"http://127.0.0.1:{self._ports[service.metrics_port]}/metrics"
            with urllib.request.urlopen(url, timeout=5) as answer:
                page = answer.read().decode()
            pattern = r'flywheel_background_failures_total\{task="([^"]+)"\} (\d+)\.0'
            tasks = [f"{task} {count}x" for task, count in re.findall(pattern, page) if count != "0"]
            if tasks:
                failed[service.name] = tasks
        return failed


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[Kafka]:
    """A Kafka of its own: consumers read whole topics, also what other tests have written."""
    with Backends({"kafka"}, directory=tmp_path / "backends", durable=False) as backends:
        yield backends.kafka


@pytest.fixture
def running_services(
    postgres: Postgres, redis_url: str, s3: S3, kafka: Kafka, tmp_path: Path
) -> Iterator[Services]:
    tag = uuid.uuid4().hex[:8]
    postgres.create_databases([f"{name}_{tag}" for name in services.DATABASES])
    ports = port_numbers.free(port_numbers.OFFSETS)
    backends: Any = SimpleNamespace(
        postgres=SimpleNamespace(dsn=lambda name: postgres.dsn(f"{name}_{tag}")),
        redis=SimpleNamespace(url=redis_url),
        s3=s3,
        kafka=kafka,
        triton=SimpleNamespace(grpc_url="127.0.0.1:1"),
        ray=SimpleNamespace(jobs_url="http://127.0.0.1:1", token="none"),
    )
    processes: dict[str, Process] = {}
    try:
        for service in services.SERVICES:
            directory = tmp_path / service.name
            directory.mkdir()
            environment = {
                **services.settings(service, backends, ports, tmp_path),
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            }
            processes[service.name] = Process(
                service.name,
                service.command,
                log=tmp_path / f"{service.name}.log",
                environment=environment,
                directory=directory,
            )
        yield Services(processes, ports)
    finally:
        for process in processes.values():
            process.signal(15)
        for process in processes.values():
            process.stop(15)


class Load:
    """Calls that go on while PostgreSQL is down; failures are expected then."""

    def __init__(self, calls: dict[str, Call]) -> None:
        self._calls = calls
        self.answered: Counter[str] = Counter()
        self.acknowledged: dict[str, list[int]] = {name: [] for name in calls}
        self._number = 0

    async def call(self, name: str) -> None:
        while True:
            self._number += 1
            number = self._number
            try:
                await self._calls[name](number)
            except (grpc.RpcError, fw.FlywheelError):
                await asyncio.sleep(0.02)
            else:
                self.answered[name] += 1
                self.acknowledged[name].append(number)

    async def every_call_is_answered(self, within: float = 60.0) -> None:
        before = self.answered.copy()

        def answered() -> bool:
            silent = [name for name in self._calls if self.answered[name] == before[name]]
            assert not silent, f"no answer from {silent}"
            return True

        await eventually(answered, within=within)

    async def calls_per_second(self) -> float:
        before = self.answered.total()
        await asyncio.sleep(2.0)
        return (self.answered.total() - before) / 2.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.call(name)) for name in self._calls for _ in range(CALLERS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r for r in results if not isinstance(r, asyncio.CancelledError)] == []


@asynccontextmanager
async def clients(running: Services) -> AsyncIterator[tuple[dict[str, Call], fw.Client, Any, Any]]:
    """The calls of the load by name, and clients of feature, registry and trainer."""
    async with AsyncExitStack() as stack:
        opened = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(running.address(name)))
            for name in services.NAMES
        }
        feature = await stack.enter_async_context(fw.Client(feature=running.address("feature")))
        registry = registry_pb2_grpc.RegistryServiceStub(opened["registry"])
        trainer = trainer_pb2_grpc.TrainerServiceStub(opened["trainer"])
        monitor = monitor_pb2_grpc.MonitorServiceStub(opened["monitor"])
        inference = inference_pb2_grpc.InferenceServiceStub(opened["inference"])

        def push(n: int) -> Awaitable[object]:
            rows = {"carrier": ["AA"], "at": [T0 + timedelta(milliseconds=n)], "delay": [1.0]}
            return feature.push("landings", rows, SCHEMA, ids=[f"event-{n}"])

        calls: dict[str, Call] = {
            "create a model": lambda n: registry.CreateModel(
                registry_pb2.CreateModelRequest(parent=PROJECT, model_id=f"m{n}"), timeout=5
            ),
            "read a model": lambda _: registry.ListModels(
                registry_pb2.ListModelsRequest(parent=PROJECT, page_size=1), timeout=5
            ),
            "create an experiment": lambda n: trainer.CreateExperiment(
                trainer_pb2.CreateExperimentRequest(parent=PROJECT, experiment_id=f"e{n}"), timeout=5
            ),
            "list experiments": lambda _: trainer.ListExperiments(
                trainer_pb2.ListExperimentsRequest(parent=PROJECT, page_size=1), timeout=5
            ),
            "list alerts": lambda _: monitor.ListAlerts(
                monitor_pb2.ListAlertsRequest(parent=PROJECT), timeout=5
            ),
            "push an event": push,
            "read the serving status": lambda _: inference.GetServingStatus(
                inference_pb2.GetServingStatusRequest(), timeout=5
            ),
        }
        yield calls, feature, registry, trainer


async def names(call: Any, request: Any, field: str) -> set[str]:
    """The last parts of the names of all listed resources."""
    found: set[str] = set()
    while True:
        answer = await call(request, timeout=10)
        found |= {item.name.rpartition("/")[2] for item in getattr(answer, field)}
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


@pytest.mark.slow
@pytest.mark.timeout(240 + 30 * STOPS)
async def test_no_process_ends_when_postgres_stops_under_load(
    running_services: Services, postgres: Postgres
) -> None:
    await eventually(running_services.all_serve, within=90, every=0.5)
    dice = random.Random(10)
    async with clients(running_services) as (calls, feature, registry, trainer):
        carrier = fw.Entity("carrier", {"carrier": fw.STRING})
        landings = fw.StreamSource("landings", SCHEMA, timestamp="at")
        view = fw.StreamView("delays", carrier, landings, [fw.count("7d", name="n")], tile="1h")
        await feature.apply(fw.compile_definitions([view, fw.FeatureSet("all", ["delays:*"])], "default"))
        load = Load(calls)
        async with load.running():
            await load.every_call_is_answered()
            for stop in range(STOPS):
                rate = await load.calls_per_second()
                assert rate >= CALLS_PER_SECOND, f"only {rate:.0f} calls/s before stop {stop}"
                if stop % 2:
                    await asyncio.to_thread(postgres.stop)
                else:
                    await asyncio.to_thread(postgres.kill)
                await asyncio.sleep(dice.uniform(0.0, 2.0))
                assert running_services.ended() == {}
                await asyncio.to_thread(postgres.restart)
                await load.every_call_is_answered()
                await eventually(running_services.all_serve, within=30, every=0.2)
        assert running_services.background_failures() == {}
        models = await names(registry.ListModels, registry_pb2.ListModelsRequest(parent=PROJECT), "models")
        assert {f"m{n}" for n in load.acknowledged["create a model"]} <= models
        experiments = await names(
            trainer.ListExperiments, trainer_pb2.ListExperimentsRequest(parent=PROJECT), "experiments"
        )
        assert {f"e{n}" for n in load.acknowledged["create an experiment"]} <= experiments
        last = await feature.push(
            "landings", {"carrier": ["AA"], "at": [T0], "delay": [1.0]}, SCHEMA, ids=["last"]
        )
        await feature.wait_applied(last.offsets, within=60)
    assert running_services.ended() == {}
    assert {name: p.pid for name, p in running_services.processes.items()} == running_services.pids
