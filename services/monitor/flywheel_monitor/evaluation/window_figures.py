"""What the gauges show of the newest window of a version besides its report: distributions, latencies and
segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel_monitor.drift.distribution import Distribution, of_feature, of_scores
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.report import Report, report_on
from flywheel_monitor.ingest.ports import CountedWindows
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.performance.rates import error_rate, fallback_rate
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.histograms import LATENCY_EDGES_MS, quantile

DISTRIBUTIONS_SHOWN = 10
"""Features with the largest PSI whose distributions are shown."""
SEGMENTS_SHOWN = 10
QUANTILES = (0.5, 0.99)


@dataclass(frozen=True)
class SegmentFigures:
    """A segment of a window. `psi` is the largest bias-corrected one of a feature."""

    predictions: int
    score_mean: float
    psi: float
    verdict: Verdict


@dataclass(frozen=True)
class WindowFigures:
    """See the module. `latencies_ms`: quantile → milliseconds; vectors have no distribution here."""

    scores: Distribution
    features: Sequence[Distribution]
    latencies_ms: Mapping[float, float]
    error_rate: float
    fallback_rate: float
    segments: Mapping[str, SegmentFigures]


class FigureRecords(CountedWindows, Protocol):
    """What figures are read from."""


async def window_figures(
    records: FigureRecords, version: WatchedVersion, report: Report, policy: MonitorPolicy
) -> WindowFigures:
    """The figures of the window of a report."""
    window = await records.window(version, report.span)
    bins = {f.name: f for f in version.layout.features}
    shown = [d.feature for d in report.features if d.feature in bins][:DISTRIBUTIONS_SHOWN]
    first = version.first_window.counts if version.first_window else ()
    segments = {}
    for name in await records.segments(version, SEGMENTS_SHOWN):
        part = await records.window(version, report.span, name)
        if part.predictions:
            found = report_on(version, report.span, part, Quality(), policy)
            psi = max((d.psi_corrected for d in found.features), default=0.0)
            segments[name] = SegmentFigures(part.predictions, found.score.mean, psi, found.verdict)
    return WindowFigures(
        of_scores(version.output, window.scores, first),
        [of_feature(bins[name], window.feature(bins[name])) for name in shown],
        {q: quantile(LATENCY_EDGES_MS, window.latencies, q) for q in QUANTILES},
        error_rate(window.failures, window.predictions),
        fallback_rate(window.sources, window.predictions),
        segments,
    )
