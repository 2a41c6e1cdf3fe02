"""Metrics of the gateway on /metrics, in addition to the request metrics of every service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from flywheel_inference.fallback.choice import CACHED, DEFAULT, ERROR, MODEL
from flywheel_inference.prediction.model_load import ModelLoad, RecentLatencies
from flywheel_inference.routing.route import CHALLENGER, CHAMPION, SHADOW

_ROLES = {CHAMPION: "champion", CHALLENGER: "challenger", SHADOW: "shadow"}
_SOURCES = {MODEL: "model", CACHED: "cached", DEFAULT: "default", ERROR: "error"}
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class GatewayMetrics:
    """`prediction.Measures` on Prometheus. Label children are created once: `labels()` costs time on the
    Predict path."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self._answers = Counter(
            "flywheel_inference_answers",
            "Predictions answered",
            ["model", "role", "source", "reason"],
            registry=registry,
        )
        self._rows = Histogram(
            "flywheel_inference_batch_rows",
            "Requests per batch",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self._features = Histogram(
            "flywheel_inference_features_seconds",
            "Feature lookup of a batch",
            buckets=_SECONDS,
            registry=registry,
        )
        self._model = Histogram(
            "flywheel_inference_model_seconds", "Model call of a batch", buckets=_SECONDS, registry=registry
        )
        self._children: dict[tuple[str, int, int, str], Counter] = {}
        self._latencies: dict[str, RecentLatencies] = {}

    def answered(self, model: str, role: int, source: int, reason: str, total_ms: float) -> None:
        key = (model, role, source, reason)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._answers.labels(model, _ROLES[role], _SOURCES[source], reason)
        child.inc()
        latencies = self._latencies.get(model)
        if latencies is None:
            latencies = self._latencies[model] = RecentLatencies()
        latencies.add(total_ms / 1e3, time.monotonic())

    def batch(self, rows: int, features_ms: float, model_ms: float) -> None:
        self._rows.observe(rows)
        self._features.observe(features_ms / 1e3)
        self._model.observe(model_ms / 1e3)

    def watch(self, name: str, description: str, read: Callable[[], float]) -> None:
        """A gauge whose value is read at every scrape."""
        Gauge(f"flywheel_inference_{name}", description, registry=self._registry).set_function(read)

    def watch_models(self, read: Callable[[], Iterable[ModelLoad]]) -> None:
        """Gauges per model whose values are read at every scrape."""
        self._registry.register(_ModelLoads(read, self._latencies))


class _ModelLoads(Collector):
    """Gauges of the models that are served now, so that a model that is not served any more has none."""

    def __init__(
        self, read: Callable[[], Iterable[ModelLoad]], latencies: dict[str, RecentLatencies]
    ) -> None:
        self._read = read
        self._latencies = latencies

    def collect(self) -> Iterable[GaugeMetricFamily]:
        loads, now = list(self._read()), time.monotonic()
        for name in self._latencies.keys() - {load.model for load in loads}:
            del self._latencies[name]
        p99 = {name: latencies.p99(now) for name, latencies in self._latencies.items()}
        yield _family(
            "queue_depth", "Predictions waiting for a batch", [(x.model, x.queue_depth) for x in loads]
        )
        yield _family("in_flight", "Predictions in flight", [(x.model, x.in_flight) for x in loads])
        yield _family(
            "utilisation",
            "Busy share of the batch slots of the busiest release, averaged over ten seconds",
            [(x.model, x.utilisation) for x in loads],
        )
        yield _family("p99_seconds", "99th percentile of the answers of the last minute", list(p99.items()))


def _family(name: str, description: str, values: list[tuple[str, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"flywheel_inference_{name}", description, labels=["model"])
    for model, value in values:
        family.add_metric([model], value)
    return family
