"""The verdict of each kind of alert on a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.drift.features import judge_window
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.verdicts import judge_concept, judge_labels
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.span import Span


@dataclass(frozen=True)
class WindowVerdict:
    """A verdict of one kind on one window."""

    verdict: Verdict
    span: Span
    reason: str


def verdicts(
    report: Report, version: WatchedVersion, policy: MonitorPolicy, kinds: Sequence[Kind]
) -> dict[Kind, tuple[Verdict, str]]:
    """kind → (verdict, reason)."""
    return {kind: _verdict(kind, report, version, policy) for kind in kinds}


def _verdict(
    kind: Kind, report: Report, version: WatchedVersion, policy: MonitorPolicy
) -> tuple[Verdict, str]:
    if kind == Kind.PREDICTION_DRIFT:
        return report.score.verdict, report.score.reason
    if kind == Kind.LABEL_DRIFT:
        return judge_labels(report.quality, version.quality_reference, policy)
    if kind == Kind.CONCEPT_DRIFT:
        return judge_concept(report.quality, version.quality_reference, policy)
    if report.verdict == Verdict.INSUFFICIENT:
        return report.verdict, report.reason
    if kind == Kind.DATA_QUALITY:
        if report.bad_data:
            return Verdict.DATA_QUALITY, report.reason
        return Verdict.NO_DRIFT, "data is as expected"
    # Data drift is judged on the features whose data is good: the drift statistics of the others mean
    # nothing.
    counted = [d for d in report.features if not d.silenced]
    good = [d for d in counted if d.verdict != Verdict.DATA_QUALITY]
    if counted and not good:
        return Verdict.INSUFFICIENT, report.reason
    return judge_window(good, report.predictions, policy)
