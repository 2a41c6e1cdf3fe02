"""Prometheus gauges of freshness: lag, SLA and waiting events per view, unapplied records per source.

The service publishes them, not the stream worker, so that they grow while no worker runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

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
_WAITING = Gauge(
    "flywheel_feature_freshness_waiting_seconds",
    "How long the oldest event that is not online has been stored in Kafka; 0: none waits",
    ["view"],
)
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
        self._views: set[str] = set()

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
        before, self._views = self._views, set()
        for catalog in self._projects():
            for fresh in await self._reader.read(catalog):
                if "/sources/" in fresh.name:
                    _SOURCE_LAG.labels(fresh.name).set(fresh.lag_events)
                    continue
                self._views.add(fresh.name)
                waiting = now - fresh.waiting_since / 1e6 if fresh.waiting_since else 0.0
                _WAITING.labels(fresh.name).set(max(0.0, waiting))
                _SLA.labels(fresh.name).set(fresh.freshness_sla / 1e6)
                if fresh.watermark:
                    _LAG.labels(fresh.name).set(max(0.0, now - fresh.watermark / 1e6))
        for name in before - self._views:
            # The last value of a deleted view would be an alarm for ever.
            for gauge in (_LAG, _SLA, _WAITING):
                with suppress(KeyError):
                    gauge.remove(name)
