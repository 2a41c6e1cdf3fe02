"""What the page shows, as the monitor answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from flywheel.client import Client
from flywheel.connection import timestamp
from flywheel.errors import NotFound
from flywheel.paging import list_items
from flywheel_protos.monitor.v1 import distribution_pb2, explanation_pb2, monitor_pb2

WINDOWS_SHOWN = 400
"""Newest evaluated windows in the timelines."""
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
) -> ReportContent:
    """Read what the page shows of `model` (a model or a version of one) in a range of event time.

    Without `start` and `end` it is the newest evaluated window. Raises NotFound when the model has made no
    predictions, or has no reference.
    """
    monitor = client.monitor
    name = client.path("models", model)
    request = monitor_pb2.GetDriftReportRequest(
        name=name,
        start_time=timestamp(start) if start else None,
        end_time=timestamp(end) if end else None,
        segment=segment,
    )
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
    timeline = await list_items(
        monitor.ListDriftReports,
        monitor_pb2.ListDriftReportsRequest(name=version),
        "reports",
        WINDOWS_SHOWN,
    )
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
        list(reversed(timeline.items)),
        [alert for alert in alerts.items if alert.model_version == version],
        segments,
        explanation,
    )
