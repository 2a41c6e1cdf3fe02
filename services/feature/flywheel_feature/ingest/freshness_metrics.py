"""Prometheus gauges of freshness: lag and SLA per view, unapplied records per source."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from prometheus_client import Gauge

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.ingest.freshness import FreshnessReader

log = get_logger(__name__)

PUBLISH_SECONDS = 10.0

_LAG = Gauge(
    "flywheel_feature_freshness_lag_seconds", "Now less the newest event time that is online", ["view"]
)
_SLA = Gauge("flywheel_feature_freshness_sla_seconds", "Promised lag; 0: none", ["view"])
_SOURCE_LAG = Gauge(
    "flywheel_feature_source_lag_events", "Records of a stream source that are not applied", ["source"]
)


class FreshnessGauges:
    """Publishes the gauges of all projects."""

    def __init__(
        self, reader: FreshnessReader, projects: Callable[[], Iterable[Catalog]], clock: Clock
    ) -> None:
        self._reader = reader
        self._projects = projects
        self._clock = clock

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            try:
                await self.publish()
            except FlywheelError as error:
                log.warning("freshness not published", reason=error.reason)
            await asyncio.sleep(PUBLISH_SECONDS)

    async def publish(self) -> None:
        now = self._clock.now().timestamp()
        for catalog in self._projects():
            for fresh in await self._reader.read(catalog):
                if "/sources/" in fresh.name:
                    _SOURCE_LAG.labels(fresh.name).set(fresh.lag_events)
                elif fresh.watermark:
                    _LAG.labels(fresh.name).set(max(0.0, now - fresh.watermark / 1e6))
                    _SLA.labels(fresh.name).set(fresh.freshness_sla / 1e6)
