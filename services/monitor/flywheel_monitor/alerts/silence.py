"""Silences: alerts of which no change is sent to sinks for a while."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from flywheel_monitor.alerts.errors import InvalidSilence, ReasonRequired
from flywheel_monitor.alerts.lifecycle import Kind

LONGEST = timedelta(days=366)


@dataclass(frozen=True)
class Silence:
    """See `AlertSilence` of the API. `kind` None: all kinds."""

    model: str
    kind: Kind | None
    until: datetime
    reason: str
    created_by: str


def silence_of(model: str, kind: str, duration: timedelta, reason: str, by: str, now: datetime) -> Silence:
    """Return the silence that begins now. Raises InvalidSilence, ReasonRequired."""
    if kind and kind not in {k.value for k in Kind}:
        raise InvalidSilence(f"{kind!r} is no kind of alert: {', '.join(Kind)}, or empty.", field="kind")
    if not timedelta() <= duration <= LONGEST:
        raise InvalidSilence(f"The duration {duration} is not between 0 and 366 days.", field="duration")
    if duration and not reason.strip():
        raise ReasonRequired("reason is empty: say why the alerts are silenced.", field="reason")
    return Silence(model, Kind(kind) if kind else None, now + duration, reason, by)
