"""Prometheus metrics of the archive."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Gauge


class ArchiveMetrics:
    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._waiting = Gauge("flywheel_archive_waiting_rows", "Rows not yet archived", registry=registry)

    def waiting(self, rows: int) -> None:
        self._waiting.set(rows)
