"""What a report does to the alert of one kind: open, confirm, resolve, announce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel_common.ids import Ids
from flywheel_common.telemetry.logs import get_logger
from flywheel_monitor.alerts.drift_event import DriftAnnouncement
from flywheel_monitor.alerts.lifecycle import DRIFTED, Kind, alert_actions
from flywheel_monitor.alerts.ports import Alerts
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.ports import Reports
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.verdicts import WindowVerdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.span import Span

log = get_logger(__name__)


class AlertingRecords(Reports, Alerts, Protocol):
    """Verdicts and alerts."""


async def update_alert(
    records: AlertingRecords,
    ids: Ids,
    version: WatchedVersion,
    kind: Kind,
    report: Report,
    policy: MonitorPolicy,
    before: Verdict | None = None,
) -> None:
    """Apply `alert_actions` for the newest verdicts of a kind, after that of the report was stored.
    `before`: the earlier verdict on the window of the report; an alert that it supported is retracted when
    too few windows support it now."""
    recent = await records.recent(version.id, kind, policy.m_windows)
    if all(verdict.span != report.span for verdict in recent):
        return  # the window had too few rows, or is older than the windows that decide
    unresolved = await records.unresolved(version.id, kind)
    actions = alert_actions(unresolved is not None, [v.verdict for v in recent], policy)
    newest = recent[0]
    shown = report if newest.span == report.span else await records.newest_report(version.id)
    # An older window that late events corrected may open an alert; it shows the newest window.
    features = evidence(kind, shown if shown and shown.span == newest.span else report)
    name = unresolved.name if unresolved else ""
    if actions.open:
        name = await records.open_alert(ids.new(), version, kind, newest.span, features, newest.reason)
        log.warning("alert opened", alert=name, version=version.name, kind=kind.value, reason=newest.reason)
    elif actions.confirm and newest.span == report.span:
        await records.confirm_alert(version.id, kind, newest.span, features, newest.reason)
    elif unresolved and retracts(before, report.span, recent, policy):
        await records.end_alert(version.id, kind, f"late events corrected the window: {report.reason}")
        log.info("alert retracted", alert=name, version=version.name, kind=kind.value)
    elif actions.resolve:
        await records.end_alert(version.id, kind, f"{policy.m_windows} windows without it: {newest.reason}")
        log.info("alert resolved", alert=name, version=version.name, kind=kind.value)
    if actions.announce and name:
        await records.announce(
            DriftAnnouncement(
                alert=name,
                model=version.model,
                model_version=version.name,
                version_id=version.id,
                kind=kind,
                span=newest.span,
                data_quality_cause=await bad_data_causes(records, version, kind, report, policy),
                features=features,
                summary=newest.reason,
                reference_hash=version.reference.hash,
            )
        )


async def bad_data_causes(
    records: AlertingRecords, version: WatchedVersion, kind: Kind, report: Report, policy: MonitorPolicy
) -> bool:
    """Whether bad data is the likely cause of what the window shows. Data drift is judged without the
    features that have bad data, and labels contain none. Scores and quality do, until all of `m_windows`
    windows have it: a column that is dead for good explains no new drift."""
    if kind in (Kind.DATA_DRIFT, Kind.LABEL_DRIFT):
        return False
    if kind == Kind.DATA_QUALITY or not report.bad_data:
        return kind == Kind.DATA_QUALITY
    recent = await records.recent(version.id, Kind.DATA_QUALITY, policy.m_windows)
    lasting = len(recent) == policy.m_windows and all(v.verdict in DRIFTED for v in recent)
    return not lasting


def retracts(
    before: Verdict | None, span: Span, recent: Sequence[WindowVerdict], policy: MonitorPolicy
) -> bool:
    """Whether the window drifted according to its earlier verdict, does no longer, and leaves fewer drifted
    windows than an alert needs."""
    now = next((v.verdict for v in recent if v.span == span), Verdict.INSUFFICIENT)
    corrected = before in DRIFTED and now not in DRIFTED
    return corrected and sum(v.verdict in DRIFTED for v in recent) < policy.k_of


def evidence(kind: Kind, report: Report) -> list[FeatureDrift]:
    """The features that an alert of this kind shows, most drifted first."""
    if kind == Kind.DATA_QUALITY:
        return report.features_with(Verdict.DATA_QUALITY)
    return report.features_with(Verdict.DRIFT, Verdict.WARNING)
