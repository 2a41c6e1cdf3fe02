"""Performance of a version's served predictions, read on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flywheel_common.postgres.transactions import Store
from flywheel_monitor.ingest.ports import CountedWindows
from flywheel_monitor.models.names import VersionName
from flywheel_monitor.performance.estimate import Estimate, estimate_of
from flywheel_monitor.performance.ports import LabelledPredictions
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.performance.rates import error_rate, fallback_rate
from flywheel_monitor.references.lookup import VersionRecords, find_version
from flywheel_monitor.windows.histograms import LATENCY_EDGES_MS, quantile
from flywheel_monitor.windows.span import whole_panes


@dataclass(frozen=True)
class ServedPerformance:
    """See `Performance` of the API."""

    model_version: str
    predictions: int
    quality: Quality
    score_mean: float
    latency_p50_ms: float
    latency_p99_ms: float
    error_rate: float
    fallback_rate: float
    cost_mean: float | None
    first_event_us: int | None
    last_event_us: int | None
    estimate: Estimate | None = None


class PerformanceRecords(VersionRecords, CountedWindows, LabelledPredictions, Protocol):
    """What performance is read from."""


async def served_performance(
    store: Store[PerformanceRecords],
    name: str,
    *,
    start_us: int | None,
    end_us: int | None,
    segment: str,
    pane_us: int,
) -> ServedPerformance:
    """Performance over a range of event time, widened to whole panes. Raises InvalidTimeRange, and
    NoPredictions for a version that has made no predictions."""
    VersionName.parse(name)
    span = whole_panes(start_us, end_us, pane_us)
    async with store.reading() as records:
        version = await find_version(records, name)
        span = version.kept(pane_us).readable(span)
        first, last = await records.event_range(version, span, segment)
        if first is not None and last is not None:
            # Panes of a day would hide how dependent the labels of a few hours are.
            span = version.kept(pane_us).readable(whole_panes(first, last + 1, pane_us))
        window = await records.window(version, span, segment)
        quality = await records.quality(version.id, span, window, segment)
    return ServedPerformance(
        model_version=version.name,
        predictions=window.predictions,
        quality=quality,
        score_mean=window.score_moments()[0],
        latency_p50_ms=quantile(LATENCY_EDGES_MS, window.latencies, 0.5),
        latency_p99_ms=quantile(LATENCY_EDGES_MS, window.latencies, 0.99),
        error_rate=error_rate(window.failures, window.predictions),
        fallback_rate=fallback_rate(window.sources, window.predictions),
        cost_mean=window.cost_mean(),
        first_event_us=first,
        last_event_us=last,
        estimate=estimate_of(window, quality),
    )
