"""An alert as it is stored and shown, how alerts are asked for, and the event that goes out about one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_monitor.alerts import AlertState, Kind
from flywheel_monitor.drift import FeatureDrift
from flywheel_monitor.resource_names import AlertName
from flywheel_monitor.windows import Span


@dataclass(frozen=True)
class Alert:
    """`span` opened it, `last_window_end_us` ends the newest window that confirmed it."""

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


@dataclass(frozen=True)
class AlertFilter:
    """Which alerts are wanted; what is empty or None does not matter."""

    model: str = ""
    state: AlertState | None = None
    kind: Kind | None = None


@dataclass(frozen=True)
class Announcement:
    """Major drift of one window, which goes out as `drift.detected`."""

    alert: str
    model: str
    model_version: str
    version_id: int
    kind: Kind
    span: Span
    data_quality_cause: bool
    features: Sequence[FeatureDrift]
    summary: str
    reference_hash: str


def parse_filter(text: str) -> AlertFilter:
    """`model=… AND state=OPEN AND kind=…`. Raises InvalidArgument INVALID_FILTER."""
    allowed = {"model": None, "state": {s.name for s in AlertState}, "kind": {k.value for k in Kind}}
    found: dict[str, str] = {}
    for term in (t.strip() for t in text.split(" AND ")) if text.strip() else ():
        key, equals, value = (part.strip().strip('"') for part in term.partition("="))
        choices = allowed.get(key, set()) if key in allowed else set()
        if not equals or key not in allowed or (choices is not None and value not in choices):
            raise InvalidArgument(
                f"{term!r} is not a filter: use model=…, state=OPEN|ACKNOWLEDGED|RESOLVED or kind=…, joined by AND.",
                reason="INVALID_FILTER",
                field="filter",
            )
        found[key] = value
    return AlertFilter(
        found.get("model", ""),
        AlertState[found["state"]] if "state" in found else None,
        Kind(found["kind"]) if "kind" in found else None,
    )


def unknown_alert(name: AlertName) -> NotFound:
    return NotFound(
        f"Alert {name} does not exist: ListAlerts names those that do.", reason="UNKNOWN_ALERT", alert=name
    )


def already_resolved(name: AlertName) -> FailedPrecondition:
    return FailedPrecondition(
        f"Alert {name} is resolved already: nothing to acknowledge.", reason="ALERT_RESOLVED"
    )
