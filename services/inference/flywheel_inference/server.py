"""The composition root: builds the gateway from its settings."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from weakref import WeakSet

from prometheus_client import REGISTRY, CollectorRegistry

from flywheel_common.clock import SystemClock
from flywheel_common.errors import Unavailable
from flywheel_common.event_time import EventTimeBound
from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.health import SERVING
from flywheel_common.grpc.server import Server
from flywheel_common.ids import new_id
from flywheel_common.kafka import topics
from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.producer import Producer
from flywheel_common.telemetry.meters import meter
from flywheel_inference.api.call_headers import is_high
from flywheel_inference.api.convert_requests import MAX_PREDICT_BYTES
from flywheel_inference.api.open_inference_methods import OpenInferenceServicer, add_open_inference
from flywheel_inference.api.row_answers import RowAnswers
from flywheel_inference.api.servicer import InferenceServicer
from flywheel_inference.config import InferenceSettings
from flywheel_inference.encoding.serving_messages import desired_change, release_of_spec, saved_state
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker
from flywheel_inference.models.loader import ReleaseLoader
from flywheel_inference.models.ports import (
    ArtifactCache,
    ArtifactSource,
    FeatureSetContracts,
    ModelHolds,
    ModelServer,
)
from flywheel_inference.models.replica import Replica
from flywheel_inference.models.replicas import Replicas
from flywheel_inference.models.unshared import UnsharedModels
from flywheel_inference.open_inference.raw_inference import RawInference
from flywheel_inference.open_inference.served import Served
from flywheel_inference.outcomes.ports import OutcomeSink
from flywheel_inference.outcomes.recorder import OutcomeRecorder
from flywheel_inference.permissions import OPEN_INFERENCE, PERMISSIONS, SERVICE
from flywheel_inference.prediction.admission import Admission
from flywheel_inference.prediction.bulk import BulkPredictor
from flywheel_inference.prediction.model_load import ModelLoad
from flywheel_inference.prediction.ports import CachedPredictions
from flywheel_inference.prediction.predictor import Predictor
from flywheel_inference.prediction.shadow import ShadowCopies
from flywheel_inference.prediction_log.buffer import PredictionLog
from flywheel_inference.prediction_log.ports import LogSink
from flywheel_inference.releases.release import FeatureSetContract, ReleaseSpec
from flywheel_inference.requests.bytes_in_flight import BytesInFlight
from flywheel_inference.scoring.ports import FeatureLookup
from flywheel_inference.scoring.scorer import OnScored, ReleaseScorer, ScorerSettings
from flywheel_inference.serving.desired_models import DesiredModels
from flywheel_inference.serving.ports import DesiredStateStore, ServingRegistry
from flywheel_inference.serving.reconciler import Reconciler
from flywheel_inference.serving.state import ServingState
from flywheel_inference.store.disk.state_folder import StateFolder
from flywheel_inference.store.grpc.features import GrpcFeatures
from flywheel_inference.store.grpc.registry import GrpcRegistry
from flywheel_inference.store.kafka.event_log import KafkaOutcomes, KafkaPredictionLog
from flywheel_inference.store.opentelemetry.costs import CostCounters
from flywheel_inference.store.prometheus.metrics import GatewayMetrics
from flywheel_inference.store.redis.cached_predictions import RedisCachedPredictions
from flywheel_inference.store.redis.model_holds import RedisModelHolds
from flywheel_inference.store.triton.model_server import TritonModelServer
from flywheel_protos.inference.v1 import inference_pb2_grpc


def now_micros() -> int:
    """Wall-clock time, microseconds since 1970 UTC."""
    return time.time_ns() // 1_000


class RegistryPeer(ServingRegistry, ArtifactSource, Protocol):
    """The gateway's view of the registry."""


class FeaturePeer(FeatureLookup, FeatureSetContracts, Protocol):
    """The gateway's view of the feature service."""


class SavedState(DesiredStateStore, ArtifactCache, Protocol):
    """What the gateway saves for its next boot."""


@dataclass(frozen=True)
class Ports:
    """The gateway's adapters. `cached` None: there are no cached batch predictions. `ensure_topics` creates
    the topics of the logs, waiting for Kafka."""

    registry: RegistryPeer
    features: FeaturePeer
    replicas: Sequence[Replica]
    saved: SavedState
    log: LogSink
    outcomes: OutcomeSink
    cached: CachedPredictions | None
    ensure_topics: Callable[[], Awaitable[None]]


async def build(
    settings: InferenceSettings, stack: AsyncExitStack, prometheus: CollectorRegistry = REGISTRY
) -> Server:
    """A gateway on the adapters that the settings describe; `stack` closes them."""
    folder = await asyncio.to_thread(StateFolder, settings.state_dir)
    stack.callback(folder.close)
    gateway_id = settings.gateway_id or folder.gateway_id(f"gateway-{new_id()}")
    token = settings.service_token.get_secret_value()

    registry_channel = channel(settings.registry_address, client_name="inference", token=token)
    stack.push_async_callback(registry_channel.close)
    # No retries: a batch that fails falls back; a retry would spend the budget of its callers.
    feature_channel = channel(settings.feature_address, client_name="inference", token=token, retries=False)
    stack.push_async_callback(feature_channel.close)

    log_producer = Producer(settings.kafka_bootstrap, client_id="inference-log", timeout_seconds=10.0)
    stack.push_async_callback(log_producer.close)
    outcome_producer = Producer(
        settings.kafka_bootstrap,
        client_id="inference-outcomes",
        timeout_seconds=settings.outcome_timeout_seconds,
    )
    stack.push_async_callback(outcome_producer.close)
    cached: CachedPredictions | None = None
    if redis_url := settings.redis_url.get_secret_value():
        cached = RedisCachedPredictions(redis_url, timeout_seconds=settings.answer_reserve_seconds)
        stack.push_async_callback(cached.close)
    ports = Ports(
        registry=GrpcRegistry(registry_channel, gateway_id, settings.project),
        features=GrpcFeatures(feature_channel),
        replicas=[_replica(settings, stack, address, gateway_id) for address in settings.triton_addresses],
        saved=folder,
        log=KafkaPredictionLog(log_producer, settings.kafka_partitions),
        outcomes=KafkaOutcomes(outcome_producer, settings.kafka_partitions),
        cached=cached,
        ensure_topics=lambda: _ensure_topics(settings),
    )
    return wire(settings, stack, ports, gateway_id=gateway_id, prometheus=prometheus)


def _replica(settings: InferenceSettings, stack: AsyncExitStack, address: str, gateway_id: str) -> Replica:
    """One Triton; `stack` closes it."""
    triton = TritonModelServer(address)
    stack.push_async_callback(triton.close)
    holds: ModelHolds = UnsharedModels()
    if redis_url := settings.redis_url.get_secret_value():
        holds = RedisModelHolds(redis_url, address, gateway_id, hold_seconds=settings.hold_seconds)
        stack.push_async_callback(holds.close)
    return Replica(
        address, triton, holds, backend=settings.triton_backend, instances=settings.triton_instances
    )


def wire(
    settings: InferenceSettings,
    stack: AsyncExitStack,
    ports: Ports,
    *,
    gateway_id: str,
    prometheus: CollectorRegistry,
) -> Server:
    """The gateway on these ports; `stack` stores the rest of the prediction log at shutdown."""
    metrics = GatewayMetrics(prometheus)
    log = PredictionLog(
        ports.log,
        flush_seconds=settings.log_flush_seconds,
        flush_rows=settings.log_flush_rows,
        max_rows=settings.log_max_rows,
        max_bytes=settings.log_max_bytes,
        costs=CostCounters(meter()),
    )
    stack.push_async_callback(log.drain, settings.log_drain_seconds)
    shadow = ShadowCopies(
        log.offer,
        max_rows=settings.shadow_max_rows,
        max_bytes=settings.shadow_max_bytes,
        timeout_seconds=settings.shadow_timeout_seconds,
    )
    serving = ServingState()
    admission = Admission(
        max_in_flight=settings.max_in_flight,
        max_per_model=settings.max_in_flight_per_model,
        max_per_caller=settings.max_in_flight_per_caller,
        low_share=settings.low_priority_share,
        normal_share=settings.normal_priority_share,
    )
    predictor = Predictor(
        serving,
        log,
        shadow,
        metrics,
        cached=ports.cached,
        new_id=new_id,
        now_micros=now_micros,
        admission=admission,
        default_budget_seconds=settings.default_budget_seconds,
        reserve_seconds=settings.answer_reserve_seconds,
    )
    replicas = Replicas(ports.replicas)
    scorers = _ScorerFactory(settings, ports.features, replicas, predictor.log_batch)
    loader = ReleaseLoader(ports.registry, ports.features, ports.saved, replicas)
    reconciler = Reconciler(
        serving,
        ports.registry,
        loader,
        ports.saved,
        desired=DesiredModels(ports.registry, ports.saved, release_of_spec),
        decode=desired_change,
        encode=saved_state,
        make_scorer=scorers.make,
        in_use=shadow.uses,
        heartbeat_seconds=settings.heartbeat_seconds,
        unload_seconds=settings.unload_seconds,
        warm_seconds=settings.warm_seconds,
        loads_at_once=settings.loads_at_once,
    )

    metrics.watch_models(lambda: scorers.loads(admission.by_model))
    metrics.watch("model_servers_up", "Model servers that answer", lambda: replicas.up_count)
    metrics.watch("log_held", "Log rows not stored yet", lambda: log.held)
    metrics.watch("log_dropped", "Log rows dropped", lambda: log.dropped_count)
    metrics.watch("shadow_dropped", "Shadow copies dropped", lambda: shadow.dropped_count)

    bulk = BulkPredictor(
        predictor,
        max_in_flight=settings.bulk_in_flight,
        max_batches=settings.max_batches,
        max_batches_per_caller=math.ceil(settings.max_batches * settings.bulk_caller_share),
        max_bytes=settings.max_response_bytes,
    )
    event_times = EventTimeBound(SystemClock(), settings.max_clock_skew_seconds)
    rows = RowAnswers(bulk, event_times)
    budget = BytesInFlight(settings.bulk_max_bytes, settings.bulk_max_calls, settings.bulk_caller_share)
    servicer = InferenceServicer(
        predictor,
        bulk,
        rows,
        budget,
        OutcomeRecorder(ports.outcomes, serving),
        serving,
        log,
        gateway_id=gateway_id,
        now_micros=now_micros,
        event_times=event_times,
        stream_in_flight=settings.stream_in_flight,
    )
    served = Served(serving)
    open_inference = OpenInferenceServicer(
        served,
        RawInference(served, replicas, admission, max_bytes=settings.max_response_bytes),
        bulk,
        rows,
        budget,
        is_ready=lambda: server.health.status() == SERVING,
        stream_in_flight=settings.stream_in_flight,
        max_bytes=settings.max_response_bytes,
    )
    server = Server(
        settings,
        servicers=[
            (inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer),
            (add_open_inference, open_inference),
        ],
        full_service_names=[SERVICE, OPEN_INFERENCE],
        permissions=PERMISSIONS,
        readiness=lambda: serving.settled,
        registry=prometheus,
        never_refused=is_high,
        request_bytes={f"/{SERVICE}/Predict": MAX_PREDICT_BYTES},
    )
    server.add_background("topics", ports.ensure_topics, ends=True)
    if ports.cached is not None:
        server.add_background("cached predictions", ports.cached.connect, ends=True)
    for replica in replicas.all:
        server.add_background(f"model holds of {replica.address}", replica.holds.run)
    server.add_background("serving", reconciler.run)
    server.add_background("prediction log", log.run, stops_last=True)
    server.add_background("shadow", shadow.run)
    return server


class _ScorerFactory:
    """Makes a scorer per release. Each has its own circuit breakers, so that the failures of a challenger do
    not stop calls for the champion."""

    def __init__(
        self,
        settings: InferenceSettings,
        features: FeatureLookup,
        models: ModelServer,
        on_scored: OnScored,
    ) -> None:
        self._features = features
        self._models = models
        self._on_scored = on_scored
        self._breaker = partial(
            CircuitBreaker, threshold=settings.breaker_failures, open_seconds=settings.breaker_open_seconds
        )
        self._settings = ScorerSettings(
            max_rows=settings.batch_max_rows,
            slots=settings.batch_slots,
            max_slots=settings.batch_max_slots,
            stall_seconds=settings.batch_stall_seconds,
            cap_seconds=settings.batch_cap_seconds,
        )
        self._made: WeakSet[ReleaseScorer] = WeakSet()

    def make(
        self, spec: ReleaseSpec, contract: FeatureSetContract, on_model_lost: Callable[[], None]
    ) -> ReleaseScorer:
        scorer = ReleaseScorer(
            spec,
            contract,
            features=self._features,
            models=self._models,
            feature_breaker=self._breaker(),
            model_breaker=self._breaker(),
            settings=self._settings,
            on_scored=self._on_scored,
            on_model_lost=on_model_lost,
        )
        self._made.add(scorer)
        return scorer

    def loads(self, in_flight: Mapping[str, int]) -> list[ModelLoad]:
        """The load of every model with a scorer. `in_flight`: predictions in flight by model."""
        found: dict[str, list[ReleaseScorer]] = {}
        for scorer in list(self._made):
            found.setdefault(scorer.spec.model, []).append(scorer)
        return [
            ModelLoad(
                model,
                sum(scorer.waiting for scorer in scorers),
                in_flight.get(model, 0),
                max(scorer.utilisation for scorer in scorers),
            )
            for model, scorers in found.items()
        ]


async def _ensure_topics(settings: InferenceSettings) -> None:
    names = (topics.PREDICTION_LOGGED, topics.OUTCOME_RECORDED)
    while True:
        try:
            await ensure_topics(settings.kafka_bootstrap, topics.specs(names, settings.kafka_partitions))
            return
        except Unavailable:
            continue
