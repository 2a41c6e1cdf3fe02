"""The port of window reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.verdicts import WindowVerdict
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.watermark import ReachedTimes


@dataclass(frozen=True)
class Frontier:
    """Event time in microseconds up to which the windows of a version were evaluated, without and with
    labels."""

    version_id: int
    model_id: int
    closed_until: int
    labelled_until: int


class LatePredictions(Protocol):
    """Served predictions that were counted after their window was judged."""

    async def late_windows(self, version_id: int, window_us: int, limit: int) -> list[Span]:
        """Windows with late predictions since `take_late`, the oldest first."""
        ...

    async def take_late(self, version_id: int, span: Span) -> None:
        """The late predictions of the window so far are dealt with."""
        ...

    async def late(self, version_id: int, span: Span) -> int:
        """How many predictions of the span were late, ever."""
        ...


class Reports(LatePredictions, Protocol):
    """Windows to judge, the reports and verdicts on them, and how far evaluation has got."""

    async def reached_times(self) -> ReachedTimes: ...

    async def frontiers(self) -> list[Frontier]:
        """The frontier of every version."""
        ...

    async def windows(self, version_id: int, start_us: int, end_us: int, window_us: int) -> list[Span]:
        """Windows that begin in [start, end), and in which panes with served predictions begin, oldest
        first."""
        ...

    async def lock(self, version_id: int) -> WatchedVersion:
        """Lock the version until the transaction ends; other transactions that lock it wait."""
        ...

    async def put_report(self, version_id: int, report: Report) -> None:
        """Store the report; it replaces an earlier one on the same window."""
        ...

    async def put_verdict(self, version_id: int, kind: Kind, verdict: WindowVerdict) -> None:
        """Store the verdict; it replaces an earlier one of this kind on the same window."""
        ...

    async def verdict(self, version_id: int, kind: Kind, span: Span) -> WindowVerdict | None:
        """The stored verdict on a window."""
        ...

    async def judged(self, version_id: int, span: Span) -> bool:
        """Whether there is a report on the window."""
        ...

    async def recent(self, version_id: int, kind: Kind, limit: int) -> list[WindowVerdict]:
        """The newest verdicts of a kind, newest window first, without windows that had too few rows."""
        ...

    async def close(self, version_id: int, until_us: int, *, labels: bool) -> None:
        """Record that windows which end at or before this are evaluated (`labels`: with their labels). A
        frontier never moves back."""
        ...

    async def reports(self, version_id: int, size: int, token: str) -> Page[Report]:
        """One page of the reports on windows with predictions, newest first. Raises InvalidPageToken."""
        ...

    async def newest_report(self, version_id: int) -> Report | None:
        """The report on the newest window with served predictions."""
        ...

    async def evaluated(self, project: str) -> int:
        """Number of windows with a report."""
        ...
