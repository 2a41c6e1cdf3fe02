"""Metrics of the gateway on /metrics, in addition to the request metrics of every service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from flywheel_inference.fallback.choice import CACHED, DEFAULT, ERROR, MODEL
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

    def answered(self, model: str, role: int, source: int, reason: str) -> None:
        key = (model, role, source, reason)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._answers.labels(model, _ROLES[role], _SOURCES[source], reason)
        child.inc()

    def batch(self, rows: int, features_ms: float, model_ms: float) -> None:
        self._rows.observe(rows)
        self._features.observe(features_ms / 1e3)
        self._model.observe(model_ms / 1e3)

    def watch(self, name: str, description: str, read: Callable[[], float]) -> None:
        """A gauge whose value is read at every scrape."""
        Gauge(f"flywheel_inference_{name}", description, registry=self._registry).set_function(read)
