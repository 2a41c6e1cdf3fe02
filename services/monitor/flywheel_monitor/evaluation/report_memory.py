"""Reports that were computed on request, kept while what they were computed from is the same.

A store that keeps the counts of a window in memory returns the same object as long as no pane of it changes.
The report on it is then the same too, unless the policy, the reference, the labels or the late predictions
changed. Windows are referred to weakly: the store alone bounds their memory."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass

from flywheel_monitor.evaluation.report import Report, report_on
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.span import Span

MOST_REPORTS = 64


@dataclass(frozen=True)
class _Known:
    """A report and what it was computed from."""

    window: weakref.ref[WindowCounts]
    earlier: weakref.ref[WindowCounts] | None
    rest: tuple[WatchedVersion, Quality, MonitorPolicy, int]
    report: Report

    def is_of(self, window: WindowCounts, earlier: WindowCounts | None) -> bool:
        known = None if self.earlier is None else self.earlier()
        return self.window() is window and known is earlier and (self.earlier is None) == (earlier is None)


class ReportMemory:
    """The MOST_REPORTS reports that were read last."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, Span, str], _Known] = OrderedDict()

    def report(
        self,
        version: WatchedVersion,
        span: Span,
        window: WindowCounts,
        quality: Quality,
        policy: MonitorPolicy,
        late: int,
        *,
        segment: str,
        earlier: WindowCounts | None,
    ) -> Report:
        """`report_on` the window of this segment."""
        key, rest = (version.name, span, segment), (version, quality, policy, late)
        known = self._known.pop(key, None)
        if known is None or not known.is_of(window, earlier) or known.rest != rest:
            report = report_on(version, span, window, quality, policy, late, earlier=earlier)
            other = None if earlier is None else weakref.ref(earlier)
            known = _Known(weakref.ref(window), other, rest, report)
        self._known[key] = known
        if len(self._known) > MOST_REPORTS:
            self._known.popitem(last=False)
        return known.report
