"""What the page shows, as the monitor answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from google.protobuf import duration_pb2

from flywheel.client import Client
from flywheel.connection import timestamp
from flywheel.errors import NotFound
from flywheel.paging import list_items
from flywheel_protos.monitor.v1 import distribution_pb2, explanation_pb2, monitor_pb2

WINDOWS_SHOWN = 400
"""Newest evaluated windows in the timelines."""
WINDOWS_COMPUTED = 100
"""Newest windows of a width that was asked for."""
SEGMENTS_SHOWN = 20


@dataclass(frozen=True)
class ReportContent:
    """`timeline` is oldest first. `segments`: name → its drift in the window of `report`."""

    report: monitor_pb2.DriftReport
    distributions: distribution_pb2.GetDistributionsResponse
    performance: monitor_pb2.Performance
    timeline: Sequence[monitor_pb2.DriftReport]
    alerts: Sequence[monitor_pb2.Alert]
    segments: Mapping[str, monitor_pb2.DriftReport]
    explanation: explanation_pb2.ExplainDriftResponse = field(
        default_factory=explanation_pb2.ExplainDriftResponse
    )


async def read_report(
    client: Client,
    model: str,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    segment: str = "",
    window_seconds: int | None = None,
) -> ReportContent:
    """Read what the page shows of `model` (a model or a version of one) in a range of event time.

    Without `start` and `end` it is the newest evaluated window, with `window_seconds` the newest one of this
    width. The timelines show the evaluated windows, or the newest ones of this width in the range. Raises
    NotFound when the model has made no predictions, or has no reference.
    """
    monitor = client.monitor
    name = await client.resolve_served(model)
    first, last = timestamp(start) if start else None, timestamp(end) if end else None
    series: Sequence[monitor_pb2.DriftReport] = ()
    if window_seconds is not None:
        width = duration_pb2.Duration(seconds=window_seconds)
        listed = monitor_pb2.ListDriftReportsRequest(
            name=name, window=width, segment=segment, start_time=first, end_time=last
        )
        series = (await list_items(monitor.ListDriftReports, listed, "reports", WINDOWS_COMPUTED)).items
        if series and start is None and end is None:
            first, last = series[0].window_start, series[0].window_end
    request = monitor_pb2.GetDriftReportRequest(name=name, segment=segment, start_time=first, end_time=last)
    report = (await monitor.GetDriftReport(request)).report
    version = report.model_version
    window = {"start_time": report.window_start, "end_time": report.window_end}
    distributions = await monitor.GetDistributions(
        distribution_pb2.GetDistributionsRequest(name=version, segment=segment, **window)
    )
    explanation = await monitor.ExplainDrift(
        explanation_pb2.ExplainDriftRequest(name=version, segment=segment, **window)
    )
    performance = await monitor.GetPerformance(
        monitor_pb2.GetPerformanceRequest(model_version=version, segment=segment, **window)
    )
    if window_seconds is None:
        stored = monitor_pb2.ListDriftReportsRequest(name=version)
        series = (await list_items(monitor.ListDriftReports, stored, "reports", WINDOWS_SHOWN)).items
    about = f"model={version.rpartition('/versions/')[0]}"
    alerts = await list_items(
        monitor.ListAlerts, monitor_pb2.ListAlertsRequest(parent=client.parent, filter=about), "alerts", 100
    )
    segments = {}
    for one in distributions.segments[:SEGMENTS_SHOWN] if not segment else ():
        request = monitor_pb2.GetDriftReportRequest(name=version, segment=one, **window)
        try:
            segments[one] = (await monitor.GetDriftReport(request)).report
        except NotFound:
            continue  # the segment has no predictions in this window
    return ReportContent(
        report,
        distributions,
        performance.performance,
        list(reversed(series)),
        [alert for alert in alerts.items if alert.model_version == version],
        segments,
        explanation,
    )
