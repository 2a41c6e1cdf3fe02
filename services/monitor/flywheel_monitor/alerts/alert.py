"""An alert, as it is stored and shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from flywheel_monitor.alerts.lifecycle import AlertState, Kind
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.windows.span import Span


@dataclass(frozen=True)
class Alert:
    """See `Alert` of the API. `span` is the window that opened it; `last_window_end_us` is the end of the
    newest window that confirmed it."""

    name: str
    model: str
    model_version: str
    kind: Kind
    state: AlertState
    span: Span
    last_window_end_us: int
    features: tuple[FeatureDrift, ...]
    reason: str
    opened_at: datetime
    resolved_at: datetime | None = None
    acknowledged_by: str = ""
    resolved_reason: str = ""
