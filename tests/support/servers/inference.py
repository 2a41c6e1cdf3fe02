"""Gateways in this process, between stand-ins for their peers and real or in-memory backends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client import CollectorRegistry

from flywheel_common.errors import InvalidArgument
from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.server import Server
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import parse_event, payload_of
from flywheel_inference.config import InferenceSettings
from flywheel_inference.fakes.cached_predictions import MemoryCachedPredictions
from flywheel_inference.fakes.event_log import MemoryOutcomes, MemoryPredictionLog
from flywheel_inference.fakes.model_holds import MemoryModelHolds, SharedHolds
from flywheel_inference.fakes.model_server import MemoryModelServer
from flywheel_inference.fakes.saved_state import MemoryState
from flywheel_inference.models.replica import Replica
from flywheel_inference.server import Ports, build, wire
from flywheel_inference.store.grpc.features import GrpcFeatures
from flywheel_inference.store.grpc.registry import GrpcRegistry
from flywheel_protos.events.v1.prediction_pb2 import OutcomeBatch, PredictionBatch
from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.inference import MODEL, run_onnx
from tests.support.eventually import eventually
from tests.support.peers.inference import (
    NO_SERVER,
    FeatureServicer,
    RegistryServicer,
    feature_server,
    registry_server,
)

PARTITIONS = 4
LoggedRow = tuple[int, Any, int]
"""Partition, batch, and the row in the batch."""
_PAYLOADS = {topics.PREDICTION_LOGGED: PredictionBatch, topics.OUTCOME_RECORDED: OutcomeBatch}


class Gateway:
    """A running gateway and a client for it."""

    def __init__(
        self, server: Server, channel: grpc.aio.Channel, close: Callable[[], Awaitable[None]]
    ) -> None:
        self.server = server
        self.channel = channel
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self.close = close

    async def predict(
        self,
        carrier: str = "UA",
        miles: float = 1.0,
        origin: str = "JFK",
        *,
        model: str = MODEL,
        timeout: float = 5.0,
        **fields: Any,
    ) -> Any:
        value = value_pb2.Value
        request = inference_pb2.PredictRequest(
            model=model,
            entity_keys={"carrier": value(string_value=carrier)},
            request_fields={"miles": value(double_value=miles), "origin": value(string_value=origin)},
            **fields,
        )
        return await self.stub.Predict(request, timeout=timeout)

    async def status(self) -> Any:
        """The serving status of the only model; None when there is none."""
        response = await self.stub.GetServingStatus(inference_pb2.GetServingStatusRequest())
        return response.models[0] if response.models else None

    async def serves(self, generation: int, within: float = 30.0) -> Any:
        """Waits until a generation is applied completely; returns the status."""

        async def applied() -> Any:
            status = await self.status()
            return status if status is not None and status.generation == generation else None

        return await eventually(applied, within=within)


def settings_for_tests(**changes: Any) -> InferenceSettings:
    """Settings with a free port and a fast shutdown. Peers that `changes` lacks are unreachable."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "drain_seconds": 0.0,
        "grace_seconds": 1.0,
        "log_rpcs": False,
        "registry_address": NO_SERVER,
        "feature_address": NO_SERVER,
        "triton_url": NO_SERVER,
        "kafka_bootstrap": NO_SERVER,
        "state_dir": Path("/nonexistent"),
        "gateway_id": "gateway-test",
        "log_drain_seconds": 2.0,
        "unload_seconds": 0.0,
        # Long limits: the tests check behaviour, and the machine may be busy.
        "batch_cap_seconds": 2.0,
        "default_budget_seconds": 4.0,
        "max_late_seconds": 0.0,
    }
    return InferenceSettings(**{**values, **changes})


class Deployment:
    """Stand-ins for the registry and the feature service, and gateways with these settings."""

    def __init__(self, stack: AsyncExitStack, **settings: Any) -> None:
        self._stack = stack
        self._settings = settings
        self.registry, self.features = RegistryServicer(), FeatureServicer()
        self.registry_server = registry_server(self.registry)
        self.feature_server = feature_server(self.features)

    async def start(self) -> None:
        for server in (self.registry_server, self.feature_server):
            await server.start()
            self._stack.push_async_callback(server.stop)

    async def gateway(self, **changes: Any) -> Gateway:
        """A running gateway. It stops at the end of the test, or with `close`."""
        values: dict[str, Any] = {
            "registry_address": self.registry_server.address,
            "feature_address": self.feature_server.address,
            **self._settings,
            **changes,
        }
        stack = await self._stack.enter_async_context(AsyncExitStack())
        server = await self._server(settings_for_tests(**values), stack)
        return await stack.enter_async_context(_running(server, stack.aclose))

    async def gateway_serving(self, champion: Any, **changes: Any) -> Gateway:
        """A gateway that serves this release."""
        gateway = await self.gateway(**changes)
        await gateway.serves(self.registry.want(champion=champion))
        return gateway

    async def _server(self, settings: InferenceSettings, stack: AsyncExitStack) -> Server:
        return await build(settings, stack, CollectorRegistry())

    async def logged(
        self, topic: str, ids: set[str], *, each: int = 1, within: float = 20.0
    ) -> dict[str, list[LoggedRow]]:
        """Rows of a topic by prediction id, once every id has at least `each` rows."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._settings["kafka_bootstrap"], auto_offset_reset="earliest"
        )
        await consumer.start()
        found: dict[str, list[LoggedRow]] = {}
        try:
            consumer.assign([TopicPartition(topic, p) for p in range(PARTITIONS)])
            async with asyncio.timeout(within):
                while any(len(found.get(id_, ())) < each for id_ in ids):
                    for partition, records in (await consumer.getmany(timeout_ms=200)).items():
                        values = [(partition.partition, record.value) for record in records]
                        _add_rows(found, topic, ids, values)
        finally:
            await consumer.stop()
        return found


class MemoryDeployment(Deployment):
    """A deployment whose gateways use in-memory backends, except for the registry and the feature service."""

    def __init__(self, stack: AsyncExitStack, **settings: Any) -> None:
        super().__init__(stack, **settings)
        self.models, self.saved = MemoryModelServer(run_onnx), MemoryState()
        self.log, self.outcomes = MemoryPredictionLog(PARTITIONS), MemoryOutcomes()
        self.cached = MemoryCachedPredictions()
        self.holds = SharedHolds()
        self.more_replicas: list[tuple[MemoryModelServer, MemoryModelHolds]] = []
        """Model servers beside `models`."""

    async def ports(self, settings: InferenceSettings, stack: AsyncExitStack) -> Ports:
        """The adapters of one gateway."""
        registry, features = [
            await stack.enter_async_context(channel(address, client_name="tests", health_check=False))
            for address in (settings.registry_address, settings.feature_address)
        ]
        return Ports(
            replicas=[
                Replica("memory", self.models, MemoryModelHolds(settings.gateway_id, self.holds)),
                *(Replica(f"memory-{i}", *more) for i, more in enumerate(self.more_replicas)),
            ],
            registry=GrpcRegistry(registry, settings.gateway_id, ""),
            features=GrpcFeatures(features),
            saved=self.saved,
            log=self.log,
            outcomes=self.outcomes,
            cached=self.cached,
            ensure_topics=_nothing_to_do,
        )

    async def _server(self, settings: InferenceSettings, stack: AsyncExitStack) -> Server:
        ports = await self.ports(settings, stack)
        return wire(settings, stack, ports, gateway_id=settings.gateway_id, prometheus=CollectorRegistry())

    def log_rows(self) -> int:
        """Number of rows in the prediction log."""
        return sum(record.rows for record in self.log.stored)

    async def logged(
        self, topic: str, ids: set[str], *, each: int = 1, within: float = 20.0
    ) -> dict[str, list[LoggedRow]]:
        assert topic == topics.PREDICTION_LOGGED

        def rows() -> dict[str, list[LoggedRow]] | None:
            found: dict[str, list[LoggedRow]] = {}
            _add_rows(found, topic, ids, [(record.partition, record.value) for record in self.log.stored])
            return found if all(len(found.get(id_, ())) >= each for id_ in ids) else None

        found: dict[str, list[LoggedRow]] = await eventually(rows, within=within)
        return found


async def _nothing_to_do() -> None:
    pass


@asynccontextmanager
async def _running(server: Server, close: Callable[[], Awaitable[None]]) -> AsyncIterator[Gateway]:
    """A gateway while it runs; leaving the context stops it as SIGTERM does."""
    task = asyncio.create_task(server.run_until_signal())
    try:
        await eventually(lambda: server.port or task.done())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as client:
            yield Gateway(server, client, close)
    finally:
        server.request_stop()
        await task


def _add_rows(
    found: dict[str, list[LoggedRow]], topic: str, ids: set[str], records: Iterable[tuple[int, bytes]]
) -> None:
    for partition, value in records:
        try:
            batch = payload_of(parse_event(value), _PAYLOADS[topic])
        except InvalidArgument:  # a poison record that another suite left on the topic
            continue
        for row, prediction in enumerate(batch.prediction_ids):
            if prediction in ids:
                found.setdefault(prediction, []).append((partition, batch, row))
