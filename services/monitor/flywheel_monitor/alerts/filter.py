"""The filter of ListAlerts."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_monitor.alerts.errors import InvalidFilter
from flywheel_monitor.alerts.lifecycle import AlertState, Kind


@dataclass(frozen=True)
class AlertFilter:
    """Selects alerts; an empty or None field matches all."""

    model: str = ""
    state: AlertState | None = None
    kind: Kind | None = None


def parse_filter(text: str) -> AlertFilter:
    """Parse `model=… AND state=OPEN AND kind=…`. Raises InvalidFilter."""
    allowed = {"model": None, "state": {s.name for s in AlertState}, "kind": {k.value for k in Kind}}
    found: dict[str, str] = {}
    for term in (t.strip() for t in text.split(" AND ")) if text.strip() else ():
        key, equals, value = (part.strip().strip('"') for part in term.partition("="))
        choices = allowed.get(key)
        if not equals or key not in allowed or (choices is not None and value not in choices):
            raise InvalidFilter(
                f"{term!r} is not a filter: use model=…, state=OPEN|ACKNOWLEDGED|RESOLVED or kind=…, "
                "joined by AND.",
                field="filter",
            )
        found[key] = value
    return AlertFilter(
        found.get("model", ""),
        AlertState[found["state"]] if "state" in found else None,
        Kind(found["kind"]) if "kind" in found else None,
    )
