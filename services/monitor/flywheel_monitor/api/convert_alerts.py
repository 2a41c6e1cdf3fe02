"""Alerts as protobuf."""

from __future__ import annotations

from flywheel_monitor.alerts.alert import Alert
from flywheel_monitor.api.convert_reports import feature_to_proto
from flywheel_monitor.api.timestamps import timestamp, wall_time
from flywheel_protos.monitor.v1 import monitor_pb2


def alert_to_proto(alert: Alert) -> monitor_pb2.Alert:
    return monitor_pb2.Alert(
        name=alert.name,
        model=alert.model,
        model_version=alert.model_version,
        kind=alert.kind.value,
        state=int(alert.state),  # type: ignore[arg-type]
        window_start=timestamp(alert.span.start_us),
        window_end=timestamp(alert.span.end_us),
        last_window_end=timestamp(alert.last_window_end_us),
        features=[feature_to_proto(f) for f in alert.features],
        reason=alert.reason,
        opened_at=wall_time(alert.opened_at),
        resolved_at=wall_time(alert.resolved_at),
        acknowledged_by=alert.acknowledged_by,
        resolved_reason=alert.resolved_reason,
    )
