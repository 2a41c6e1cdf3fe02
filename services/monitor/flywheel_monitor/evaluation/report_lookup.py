"""Reports and histograms that are read: the newest stored ones, or those computed for a range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.drift.distribution import Distribution, of_feature, of_scores
from flywheel_monitor.evaluation.ports import Reports
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.report_memory import ReportMemory
from flywheel_monitor.ingest.ports import CountedWindows
from flywheel_monitor.models.policy import WEEK_US, MonitorPolicy
from flywheel_monitor.performance.ports import LabelledPredictions
from flywheel_monitor.references.errors import NoPredictions, NoReference
from flywheel_monitor.references.lookup import VersionRecords, find_version, find_watched
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.span import Span, whole_panes

SEGMENTS_SHOWN = 100


class ReportRecords(VersionRecords, CountedWindows, LabelledPredictions, Reports, Protocol):
    """What reports are read and computed from."""


async def find_report(
    store: Store[ReportRecords],
    name: str,
    *,
    start_us: int | None,
    end_us: int | None,
    segment: str,
    pane_us: int,
    memory: ReportMemory | None = None,
) -> Report:
    """Drift of a range, widened to whole panes, or of the newest judged window if both ends are None.
    `memory` keeps the reports for further reads of the same range. Raises UnknownModel, NoPredictions,
    NoReference, InvalidTimeRange."""
    async with store.reading() as records:
        version, policy = await find_watched(records, name)
        if not version.reference.columns:
            raise NoReference(f"{version.name} has no reference to compare with: {version.reference.reason}.")
        if start_us is None and end_us is None and not segment:
            return await _newest(records, version)
        span = await read_span(records, version, start_us, end_us, pane_us)
        window = await records.window(version, span, segment)
        quality = await records.quality(version.id, span, window, segment)
        late = await records.late(version.id, span) if not segment else 0
        earlier = await seasonal_window(records, version, span, policy, segment)
    if window.predictions == 0:
        raise NoPredictions(f"{version.name} served no predictions in this range.")
    memory = memory or ReportMemory()
    return memory.report(version, span, window, quality, policy, late, segment=segment, earlier=earlier)


async def seasonal_window(
    records: CountedWindows, version: WatchedVersion, span: Span, policy: MonitorPolicy, segment: str = ""
) -> WindowCounts | None:
    """The counts of the same hours `seasonal_weeks` earlier; None if the policy has no second reference, or
    if the two ranges overlap."""
    shift = policy.seasonal_weeks * WEEK_US
    if not shift or span.end_us - span.start_us > shift:
        return None
    return await records.window(version, Span(span.start_us - shift, span.end_us - shift), segment)


@dataclass(frozen=True)
class Distributions:
    """Histograms of a range; see `GetDistributionsResponse` of the API."""

    model_version: str
    span: Span
    predictions: int
    features: Sequence[Distribution]
    scores: Distribution
    segments: Sequence[str]


async def find_distributions(
    store: Store[ReportRecords],
    name: str,
    *,
    start_us: int | None,
    end_us: int | None,
    segment: str,
    pane_us: int,
) -> Distributions:
    """Histograms of a range, widened to whole panes, or of the newest judged window if both ends are None.
    Raises UnknownModel, NoPredictions, InvalidTimeRange."""
    async with store.reading() as records:
        version = await find_version(records, name)
        span = await read_span(records, version, start_us, end_us, pane_us)
        window = await records.window(version, span, segment)
        segments = await records.segments(version, SEGMENTS_SHOWN)
    if window.predictions == 0:
        raise NoPredictions(f"{version.name} served no predictions in this range.")
    first = version.first_window.counts if version.first_window else ()
    return Distributions(
        version.name,
        span,
        window.predictions,
        [of_feature(bins, window.feature(bins)) for bins in version.layout.features],
        of_scores(version.output, window.scores, first),
        segments,
    )


async def find_reports(store: Store[ReportRecords], name: str, size: int, token: str) -> Page[Report]:
    """The stored reports of a version, newest first. Raises UnknownModel, NoPredictions, InvalidPageToken."""
    async with store.reading() as records:
        version = await find_version(records, name)
        return await records.reports(version.id, size, token)


async def read_span(
    records: ReportRecords, version: WatchedVersion, start_us: int | None, end_us: int | None, pane_us: int
) -> Span:
    """The range in whole panes; the newest judged window if both ends are None."""
    if start_us is None and end_us is None:
        return (await _newest(records, version)).span
    return version.kept(pane_us).readable(whole_panes(start_us, end_us, pane_us))


async def _newest(records: ReportRecords, version: WatchedVersion) -> Report:
    newest = await records.newest_report(version.id)
    if newest is None:
        raise NoPredictions(
            f"No window of {version.name} is closed yet: give start_time and end_time, or wait."
        )
    return newest
