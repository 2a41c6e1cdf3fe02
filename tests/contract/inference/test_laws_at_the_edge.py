"""The laws of what a gateway stands on, as its callers see them: through real RPCs to the whole gateway, over stores in memory and over
Triton, Kafka, Redis and a disk. A law that no RPC reaches stands at the end with its reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from flywheel_common.grpc.channel import channel
from flywheel_common.kafka import topics
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.envelope import parse_event, payload_of
from flywheel_inference.fakes.cached_predictions import MemoryPredictions
from flywheel_inference.fakes.event_log import MemoryLog, MemoryOutcomes
from flywheel_inference.fakes.kept_state import MemoryState
from flywheel_inference.fakes.model_server import MemoryModels
from flywheel_inference.fallback.choice import CachedPrediction
from flywheel_inference.models.ports import ModelControl
from flywheel_inference.server import Ports, build, wire
from flywheel_inference.store.grpc import features as feature_peer
from flywheel_inference.store.grpc import registry as registry_peer
from flywheel_inference.store.redis.cached_predictions import encode, key_of
from flywheel_inference.store.triton.model_server import Triton
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.feature.v1 import feature_pb2_grpc
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.registry.v1 import registry_pb2_grpc
from tests.integration.inference.gateway_peers import (
    MODEL,
    ORIGINS,
    Features,
    Gateway,
    Peer,
    Registry,
    expected_score,
    run_onnx,
    serving,
    settings_for_tests,
)
from tests.support.eventually import eventually

PARTITIONS = 4
W, V = (0.5, -0.25, 1.0), (-1.0, 0.5, 0.25)
CACHED, DEFAULT = prediction_pb2.PREDICTION_SOURCE_CACHED, prediction_pb2.PREDICTION_SOURCE_DEFAULT
Row = tuple[int, Any, int]
"""Partition, batch, and the row in it."""


@dataclass
class Backends:
    """What lives longer than a gateway."""

    gateway: Callable[[AsyncExitStack], Awaitable[Any]]
    """A server over them; its stack closes it."""
    models: ModelControl
    cache: Callable[[str, CachedPrediction], Awaitable[None]]
    """As a batch job writes it, by subject."""
    records: Callable[[str], Awaitable[list[tuple[int, bytes]]]]
    """(partition, event) of a topic, in the order of each partition."""


class World:
    """Peers that say what a test wants, and gateways between them and the backends."""

    def __init__(
        self, backends: Backends, registry: Registry, features: Features, registry_peer: Peer
    ) -> None:
        self._backends = backends
        self.registry = registry
        self.features = features
        self.registry_peer = registry_peer
        self.models = backends.models
        self.cache = backends.cache

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[Gateway]:
        async with AsyncExitStack() as stack:
            server = await self._backends.gateway(stack)
            yield await stack.enter_async_context(serving(server))

    async def logged(self, topic: str, kind: Any, ids: set[str], rows: int) -> dict[str, list[Row]]:
        """By prediction id, once there are so many rows of these ids."""

        async def all_of_them() -> Any:
            found: dict[str, list[Row]] = {}
            for partition, value in await self._backends.records(topic):
                batch = payload_of(parse_event(value), kind)
                for row, prediction in enumerate(batch.prediction_ids):
                    if prediction in ids:
                        found.setdefault(prediction, []).append((partition, batch, row))
            return found if sum(map(len, found.values())) >= rows else None

        found: dict[str, list[Row]] = await eventually(all_of_them, within=30)
        return found


def in_memory(addresses: dict[str, str]) -> Backends:
    models, kept, log, outcomes, cached = (
        MemoryModels(run_onnx), MemoryState(), MemoryLog(PARTITIONS), MemoryOutcomes(), MemoryPredictions(),
    )  # fmt: skip

    async def gateway(stack: AsyncExitStack) -> Any:
        peers = {
            name: await stack.enter_async_context(channel(address, client_name="tests", health_check=False))
            for name, address in addresses.items()
        }
        ports = Ports(
            registry=registry_peer.Registry(peers["registry_address"], "gateway-test", ""),
            features=feature_peer.FeatureService(peers["feature_address"]),
            models=models,
            kept=kept,
            log=log,
            outcomes=outcomes,
            cached=cached,
        )
        return wire(
            settings_for_tests(), stack, ports, gateway_id="gateway-test", prometheus=CollectorRegistry()
        )

    async def cache(subject: str, prediction: CachedPrediction) -> None:
        cached.held[MODEL, subject] = prediction

    async def records(topic: str) -> list[tuple[int, bytes]]:
        from flywheel_inference.encoding.outcome_events import outcome_records

        if topic == topics.PREDICTION_LOGGED:
            return [(record.partition, record.value) for record in log.stored]
        return [r for model, row in outcomes.stored for r in outcome_records(model, [row], PARTITIONS)]

    return Backends(gateway, models, cache, records)


@asynccontextmanager
async def real(
    addresses: dict[str, str], folder: Path, triton_url: str, bootstrap: str, redis_url: str
) -> AsyncIterator[Backends]:
    names = (topics.PREDICTION_LOGGED, topics.OUTCOME_RECORDED)
    await ensure_topics(bootstrap, topics.specs(names, PARTITIONS))
    triton = Triton(triton_url)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()

    async def gateway(stack: AsyncExitStack) -> Any:
        settings = settings_for_tests(
            **addresses, triton_url=triton_url, kafka_bootstrap=bootstrap, redis_url=redis_url, state_dir=folder,
            answer_reserve_seconds=0.5,
        )  # fmt: skip
        return await build(settings, stack, CollectorRegistry())

    async def cache(subject: str, prediction: CachedPrediction) -> None:
        async with Redis.from_url(redis_url) as redis:
            await redis.set(key_of(MODEL, subject), encode(prediction.score, prediction.scored_at_micros))

    async def records(topic: str) -> list[tuple[int, bytes]]:
        partitions = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(partitions)
        found: list[tuple[int, bytes]] = []
        while any([await consumer.position(p) < ends[p] for p in partitions]):
            for partition, batch in (await consumer.getmany(timeout_ms=200)).items():
                found += [(partition.partition, record.value) for record in batch]
        return found

    try:
        yield Backends(gateway, triton, cache, records)
    finally:
        await consumer.stop()
        await triton.close()


@pytest.fixture(params=["memory", "real"])
def backends(request: pytest.FixtureRequest) -> dict[str, str]:
    """Addresses of the real backends; none for those in memory."""
    if request.param == "memory":
        return {}
    return {
        "triton_url": request.getfixturevalue("triton").grpc_url,
        "bootstrap": request.getfixturevalue("kafka").bootstrap,
        "redis_url": request.getfixturevalue("redis_url"),
    }


@pytest.fixture
async def world(backends: dict[str, str], tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        registry, features = Registry(), Features()
        registry_at = Peer(registry_pb2_grpc.add_RegistryServiceServicer_to_server, registry)
        features_at = Peer(feature_pb2_grpc.add_FeatureServiceServicer_to_server, features)
        for peer in (registry_at, features_at):
            await peer.start()
            stack.push_async_callback(peer.stop)
        addresses = {
            "registry_address": f"127.0.0.1:{registry_at.port}",
            "feature_address": f"127.0.0.1:{features_at.port}",
        }
        behind = (
            await stack.enter_async_context(real(addresses, tmp_path, **backends))
            if backends
            else in_memory(addresses)
        )
        yield World(behind, registry, features, registry_at)


def score(weights: tuple[float, ...], delay: float, miles: float, origin: str) -> Any:
    return pytest.approx(expected_score(weights, 0.0, [delay, miles, ORIGINS.index(origin)]), abs=1e-5)


async def test_every_caller_gets_the_loaded_models_score_of_its_own_row(world: World) -> None:
    async with world.gateway() as gateway:
        await gateway.serves(world.registry.want(champion=world.registry.release(101, W)))
        sent = [(carrier, i / 10, ORIGINS[i % 3]) for i, carrier in enumerate(["UA", "DL"] * 20)]
        answers = await asyncio.gather(*(gateway.predict(*row) for row in sent))
    delays = {"UA": 2.0, "DL": -1.0}
    assert [score(W, delays[c], miles, origin) for c, miles, origin in sent] == [a.score for a in answers]
    assert {(f"{MODEL}/releases/101", False)} == {(a.release, a.degraded) for a in answers}


async def test_another_release_takes_the_place_of_the_first_whose_model_is_unloaded(world: World) -> None:
    async with world.gateway() as gateway:
        await gateway.serves(world.registry.want(champion=world.registry.release(111, W)))
        assert await world.models.is_loaded("test.late.v111", 5.0)
        await gateway.serves(world.registry.want(champion=world.registry.release(112, V)))
        answer = await gateway.predict("UA", 1.0, "EWR")
        assert (f"{MODEL}/releases/112", score(V, 2.0, 1.0, "EWR")) == (answer.release, answer.score)

        async def unloaded() -> bool:
            return not await world.models.is_loaded("test.late.v111", 5.0)

        await eventually(unloaded, within=20)
        assert await world.models.is_loaded("test.late.v112", 5.0)


async def test_a_file_that_does_not_have_its_digest_never_serves(world: World) -> None:
    async with world.gateway() as gateway:
        good = world.registry.want(champion=world.registry.release(121, W))
        await gateway.serves(good)
        world.registry.want(champion=world.registry.release(122, V, corrupt=True))

        async def refused() -> bool:
            failures = (await gateway.status()).failures
            return str(failures.get(f"{MODEL}/releases/122", "")).startswith("DIGEST_MISMATCH")

        await eventually(refused, within=20)
        assert f"{MODEL}/releases/121" == (await gateway.predict()).release
        assert not await world.models.is_loaded("test.late.v122", 5.0)


async def test_a_gateway_boots_from_what_it_kept_while_the_registry_is_away(world: World) -> None:
    async with world.gateway() as first:
        generation = world.registry.want(champion=world.registry.release(131, W))
        await first.serves(generation)
    await world.models.unload("test.late.v131", 30.0)
    await world.registry_peer.stop()
    world.registry.artifacts.clear()
    async with world.gateway() as second:
        await second.serves(generation)
        assert score(W, 2.0, 1.0, "JFK") == (await second.predict("UA", 1.0, "JFK")).score


async def test_nothing_kept_and_no_registry_serve_nothing(world: World) -> None:
    await world.registry_peer.stop()
    async with world.gateway() as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.predict()
        assert grpc.StatusCode.NOT_FOUND == caught.value.code()
        assert await gateway.status() is None


async def test_two_predictions_under_one_id_are_answered_alike_and_logged_twice_in_its_partition(
    world: World,
) -> None:
    own = uuid4().hex
    async with world.gateway() as gateway:
        await gateway.serves(world.registry.want(champion=world.registry.release(141, W)))
        first, again = [await gateway.predict("UA", 3.0, "LGA", prediction_id=own) for _ in range(2)]
        assert (own, first.score) == (first.prediction_id, again.score) == (again.prediction_id, again.score)
        rows = (await world.logged(topics.PREDICTION_LOGGED, prediction_pb2.PredictionBatch, {own}, 2))[own]
    assert [topics.partition_for(own, PARTITIONS)] * 2 == [partition for partition, _, _ in rows]
    assert [first.score] * 2 == [float(np.frombuffer(batch.scores, "<f8")[row]) for _, batch, row in rows]


async def test_every_answer_is_logged_in_the_partition_of_its_id_by_the_time_the_gateway_has_left(
    world: World,
) -> None:
    async with world.gateway() as gateway:
        await gateway.serves(world.registry.want(champion=world.registry.release(151, W)))
        answers = await asyncio.gather(*(gateway.predict("UA", i / 10) for i in range(40)))
    scores = {answer.prediction_id: answer.score for answer in answers}
    found = await world.logged(topics.PREDICTION_LOGGED, prediction_pb2.PredictionBatch, set(scores), 40)
    for prediction, rows in found.items():
        ((partition, batch, row),) = rows
        assert topics.partition_for(prediction, PARTITIONS) == partition
        assert scores[prediction] == np.frombuffer(batch.scores, "<f8")[row]


async def test_an_answer_that_is_too_large_to_be_logged_is_counted_and_holds_up_no_other(
    world: World,
) -> None:
    async with world.gateway() as gateway:
        await gateway.serves(world.registry.want(champion=world.registry.release(156, W)))
        large = await gateway.predict("UA", 1.0, "JFK", subject="x" * (9 << 20), timeout=30)
        assert score(W, 2.0, 1.0, "JFK") == large.score

        async def counted() -> bool:
            status = await gateway.stub.GetServingStatus(pb.GetServingStatusRequest())
            return (0, 1) == (status.logged_count, status.dropped_count)

        await eventually(counted, within=20)
        small = (await gateway.predict()).prediction_id
        assert {small} == set(
            await world.logged(topics.PREDICTION_LOGGED, prediction_pb2.PredictionBatch, {small}, 1)
        )


async def test_a_batch_prediction_answers_for_the_model_until_it_is_too_old(world: World) -> None:
    await world.cache("UA", CachedPrediction(0.125, 1_000_000_000))
    await world.cache("UA", CachedPrediction(0.875, 1_000_000_000))
    release = world.registry.release(161, W)
    release.release.fallback.cached_max_age.FromSeconds(60)
    async with world.gateway() as gateway:
        await gateway.serves(world.registry.want(champion=release))
        assert not (await gateway.predict("UA", as_of={"seconds": 1_060})).degraded
        world.features.outage = grpc.StatusCode.UNAVAILABLE

        async def fallen_back(carrier: str, second: int) -> tuple[float, int, bool]:
            answer = await gateway.predict(carrier, as_of={"seconds": second})
            return answer.score, answer.source, answer.degraded

        assert (0.875, CACHED, True) == await fallen_back("UA", 1_060)
        assert (0.25, DEFAULT, True) == await fallen_back("UA", 1_061)
        assert (0.25, DEFAULT, True) == await fallen_back("DL", 1_060)


async def test_outcomes_are_kept_when_they_are_acknowledged_as_often_as_they_come(world: World) -> None:
    ids = [uuid4().hex for _ in range(10)]
    outcomes = [
        pb.Outcome(prediction_id=p, name="label", value=i % 2, event_time={"seconds": 60 + i})
        for i, p in enumerate(ids)
    ]
    outcomes.append(
        pb.Outcome(prediction_id=ids[0], name="label", value=1, event_time={"seconds": 99}, outcome_id="mine")
    )
    async with world.gateway() as gateway:
        request = pb.RecordOutcomeRequest(model=MODEL, outcomes=outcomes)
        for _ in range(2):
            assert 11 == (await gateway.stub.RecordOutcome(request, timeout=20)).accepted_count
        found = await world.logged(topics.OUTCOME_RECORDED, prediction_pb2.OutcomeBatch, set(ids), 22)
        bad = pb.RecordOutcomeRequest(
            model=MODEL, outcomes=[*outcomes, pb.Outcome(prediction_id="x", name="")]
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.RecordOutcome(bad, timeout=20)
        assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()
        after = await world.logged(topics.OUTCOME_RECORDED, prediction_pb2.OutcomeBatch, set(ids), 22)
    for i, prediction in enumerate(ids):
        rows = [
            (batch.outcome_ids[row], float(np.frombuffer(batch.values, "<f8")[row]), int(np.frombuffer(batch.event_times, "<i8")[row]))
            for _, batch, row in found[prediction]
        ]  # fmt: skip
        own = [(f"{prediction}:label", float(i % 2), (60 + i) * 1_000_000)]
        assert (own + [("mine", 1.0, 99_000_000)] * (i == 0)) * 2 == rows
        assert {topics.partition_for(prediction, PARTITIONS)} == {
            partition for partition, _, _ in found[prediction]
        }
    assert {p: len(rows) for p, rows in found.items()} == {p: len(rows) for p, rows in after.items()}


UNREACHABLE = {
    "a store that stalls is not waited for": "needs a fault between gateway and store: test_cached_predictions.py, tests/integration/inference",
    "a damaged file is as good as none": "needs a hand on the disk: test_kept_state.py",
    "a file that is no model is refused": "the registry's digest and golden rows refuse it first: test_model_server.py",
}


@pytest.mark.parametrize("law", UNREACHABLE)
def test_no_rpc_reaches(law: str) -> None:
    pytest.skip(UNREACHABLE[law])
