"""Prometheus metrics of ingestion."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Gauge


class IngestMetrics:
    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._lag = Gauge("flywheel_ingest_lag_records", "Records not yet processed", registry=registry)

    def lag(self, records: int) -> None:
        self._lag.set(records)
