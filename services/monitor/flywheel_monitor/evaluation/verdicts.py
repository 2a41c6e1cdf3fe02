"""The verdict of each kind of alert on a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flywheel_monitor.alerts.lifecycle import DRIFTED, OF_FEATURES, WHOLE, Drifted, Kind
from flywheel_monitor.drift.features import judge_window
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.verdicts import judge_concept, judge_labels
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.span import Span


@dataclass(frozen=True)
class WindowVerdict:
    """A verdict of one kind on one window, and the subjects that drifted in it."""

    verdict: Verdict
    span: Span
    reason: str
    drifted: Drifted = field(default_factory=dict)


def verdicts(
    report: Report, version: WatchedVersion, policy: MonitorPolicy, kinds: Sequence[Kind]
) -> dict[Kind, WindowVerdict]:
    """The verdict of each kind on the window of a report."""
    found = {}
    for kind in kinds:
        verdict, reason = _verdict(kind, report, version, policy)
        found[kind] = WindowVerdict(verdict, report.span, reason, _drifted(kind, verdict, report))
    return found


def _drifted(kind: Kind, verdict: Verdict, report: Report) -> Drifted:
    if verdict not in DRIFTED:
        return {}
    if kind not in OF_FEATURES:
        return {WHOLE: verdict}
    return {d.feature: d.verdict for d in report.features_with(*OF_FEATURES[kind])}


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
