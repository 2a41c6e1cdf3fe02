"""What is sent to sinks when an alert changes."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from flywheel_common.value import from_micros
from flywheel_monitor.alerts.alert import Alert
from flywheel_monitor.alerts.lifecycle import AlertState


class SinkFormat(StrEnum):
    """The form of the body."""

    WEBHOOK = "WEBHOOK"
    ALERTMANAGER = "ALERTMANAGER"


FORMATS = frozenset(SinkFormat)
NEVER = timedelta(days=365)
"""`endsAt` of an open alert: without it Alertmanager resolves an alert that is not sent again."""


def event_id(alert: Alert) -> str:
    """Return the id of the alert's last change: an alert is opened, acknowledged and resolved once."""
    return f"{alert.name}/{alert.state.name.lower()}"


def body_of(sink_format: SinkFormat, alert: Alert, now: datetime) -> bytes:
    """Return the body that reports the last change of an alert, which happened at `now`."""
    content = _webhook(alert, now) if sink_format is SinkFormat.WEBHOOK else _alertmanager(alert, now)
    return json.dumps(content, separators=(",", ":")).encode()


def _webhook(alert: Alert, now: datetime) -> dict[str, Any]:
    change = "opened" if alert.state is AlertState.OPEN else alert.state.name.lower()
    return {
        "id": event_id(alert),
        "type": f"alert.{change}",
        "time": now.isoformat(),
        "alert": {
            "name": alert.name,
            "model": alert.model,
            "model_version": alert.model_version,
            "kind": alert.kind.value,
            "state": alert.state.name,
            "reason": alert.reason,
            "window_start": from_micros(alert.span.start_us).isoformat(),
            "window_end": from_micros(alert.span.end_us).isoformat(),
            "last_window_end": from_micros(alert.last_window_end_us).isoformat(),
            "features": [
                {"feature": f.feature, "psi": f.psi_corrected, "reason": f.reason, "cause": f.cause}
                for f in alert.features[:20]
            ],
            "opened_at": alert.opened_at.isoformat(),
            "acknowledged_by": alert.acknowledged_by,
            "resolved_reason": alert.resolved_reason,
        },
    }


def _alertmanager(alert: Alert, now: datetime) -> list[dict[str, Any]]:
    _, project, _, model = alert.model.split("/")
    return [
        {
            "labels": {
                "alertname": f"Flywheel{alert.kind.value.title().replace('_', '')}",
                "alert": alert.name,
                "project": project,
                "model": model,
                "model_version": alert.model_version,
                "kind": alert.kind.value,
            },
            "annotations": {"summary": alert.resolved_reason or alert.reason},
            "startsAt": alert.opened_at.isoformat(),
            "endsAt": (now if alert.state is AlertState.RESOLVED else now + NEVER).isoformat(),
        }
    ]
