"""What a replay found."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_monitor.windows.span import Span

MAX_DIFFERENCES = 1000


@dataclass(frozen=True)
class Difference:
    """A pane or a report that the replay computed otherwise than it is stored."""

    model_version: str
    span: Span
    what: str


@dataclass(frozen=True)
class ReplayProgress:
    """See `ReplayWindowsResponse` of the API."""

    records: int
    records_total: int
    finished: bool = False
    panes: int = 0
    reports: int = 0
    differences: tuple[Difference, ...] = ()
    complete_from_us: int | None = None
