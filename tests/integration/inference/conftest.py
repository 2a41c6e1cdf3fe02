"""A gateway between real Triton, real Kafka, and small peers that speak the registry's and the feature service's API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client import CollectorRegistry

from flywheel_common.errors import InvalidArgument
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import parse_event, payload_of
from flywheel_inference.server import build
from flywheel_local.kafka import Kafka
from flywheel_local.triton import Triton
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.feature.v1 import feature_pb2_grpc
from flywheel_protos.registry.v1 import registry_pb2_grpc
from tests.integration.inference.gateway_peers import (
    NOBODY,
    Features,
    Gateway,
    Peer,
    Registry,
    serving,
    settings_for_tests,
)


class World:
    """Everything around one test."""

    def __init__(self, stack: AsyncExitStack, folder: Path, triton: Triton, kafka_bootstrap: str) -> None:
        self._stack = stack
        self.folder = folder
        self.triton = triton
        self.kafka_bootstrap = kafka_bootstrap
        self.registry, self.features = Registry(), Features()
        self.registry_peer = Peer(registry_pb2_grpc.add_RegistryServiceServicer_to_server, self.registry)
        self.feature_peer = Peer(feature_pb2_grpc.add_FeatureServiceServicer_to_server, self.features)

    async def start(self) -> None:
        for peer in (self.registry_peer, self.feature_peer):
            await peer.start()
            self._stack.push_async_callback(peer.stop)

    async def gateway(self, **changes: Any) -> Gateway:
        values: dict[str, Any] = {
            "registry_address": f"127.0.0.1:{self.registry_peer.port}",
            "feature_address": f"127.0.0.1:{self.feature_peer.port}",
            "triton_url": self.triton.grpc_url,
            "kafka_bootstrap": self.kafka_bootstrap,
            "state_dir": self.folder / "state",
            "log_drain_seconds": 2.0 if self.kafka_bootstrap != NOBODY else 0.1,
        }
        own = await self._stack.enter_async_context(AsyncExitStack())
        server = await build(settings_for_tests(**{**values, **changes}), own, CollectorRegistry())
        gateway = await own.enter_async_context(serving(server))
        gateway.close = own.aclose  # type: ignore[attr-defined]
        return gateway

    async def logged(
        self, topic: str, ids: set[str], within: float = 20.0
    ) -> dict[str, list[tuple[int, Any, int]]]:
        """prediction id → (partition, batch, row) of every record that names it, once each id was seen."""
        kind = (
            prediction_pb2.PredictionBatch
            if topic == topics.PREDICTION_LOGGED
            else prediction_pb2.OutcomeBatch
        )
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka_bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        found: dict[str, list[tuple[int, Any, int]]] = {}
        try:
            consumer.assign([TopicPartition(topic, p) for p in range(4)])
            async with asyncio.timeout(within):
                while not ids <= found.keys():
                    for partition, records in (await consumer.getmany(timeout_ms=200)).items():
                        for record in records:
                            try:
                                batch = payload_of(parse_event(record.value), kind)
                            except InvalidArgument:  # poison that another suite left on the topic
                                continue
                            for row, prediction in enumerate(batch.prediction_ids):
                                if prediction in ids:
                                    found.setdefault(prediction, []).append((partition.partition, batch, row))
        finally:
            await consumer.stop()
        return found


@pytest.fixture
async def world(tmp_path: Path, triton: Triton) -> AsyncIterator[World]:
    """Without Kafka: the log waits in memory."""
    async with AsyncExitStack() as stack:
        world = World(stack, tmp_path, triton, NOBODY)
        await world.start()
        yield world


@pytest.fixture
async def world_with_kafka(tmp_path: Path, triton: Triton, kafka: Kafka) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World(stack, tmp_path, triton, kafka.bootstrap)
        await world.start()
        yield world
