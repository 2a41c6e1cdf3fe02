"""What a report does to the alert of one kind: open, confirm, resolve, announce."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from flywheel_common.ids import Ids
from flywheel_common.telemetry.logs import get_logger
from flywheel_monitor.alerts.alert import Alert
from flywheel_monitor.alerts.drift_event import DriftAnnouncement
from flywheel_monitor.alerts.lifecycle import DRIFTED, OF_FEATURES, WHOLE, Kind, alert_actions, lasting
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

NAMED = 3
"""Features that the reason of an alert names."""


class AlertingRecords(Reports, Alerts, Protocol):
    """Verdicts and alerts."""


async def update_alert(
    records: AlertingRecords,
    ids: Ids,
    version: WatchedVersion,
    kind: Kind,
    report: Report,
    policy: MonitorPolicy,
    before: WindowVerdict | None = None,
) -> None:
    """Apply `alert_actions` for the newest verdicts of a kind, after that of the report was stored.
    `before`: the earlier verdict on the window of the report; an alert that it supported is retracted when
    too few windows support it now."""
    recent = await records.recent(version.id, kind, policy.m_windows)
    if all(verdict.span != report.span for verdict in recent):
        return  # the window had too few rows, or is older than the windows that decide
    unresolved = await records.unresolved(version.id, kind)
    shown = None if unresolved is None else subjects_of(unresolved)
    actions = alert_actions(shown, [v.drifted for v in recent], policy)
    newest = recent[0]
    known = report if newest.span == report.span else await records.newest_report(version.id)
    # An older window that late events corrected may open an alert; it shows the newest window.
    features = evidence(kind, known if known and known.span == newest.span else report, actions.subjects)
    reason = reason_of(newest, actions.subjects)
    name = unresolved.name if unresolved else ""
    if actions.open:
        name = await records.open_alert(ids.new(), version, kind, newest.span, features, reason)
        log.warning("alert opened", alert=name, version=version.name, kind=kind.value, reason=reason)
    elif actions.confirm and newest.span == report.span:
        await records.confirm_alert(version.id, kind, newest.span, features, reason)
    elif shown is not None and retracts(before, report.span, recent, shown, policy):
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
                summary=reason,
                reference_hash=version.reference.hash,
            )
        )


async def bad_data_causes(
    records: AlertingRecords, version: WatchedVersion, kind: Kind, report: Report, policy: MonitorPolicy
) -> bool:
    """Whether bad data is the likely cause of what the window shows. Data drift is judged without the
    features that have bad data, and labels contain none. Scores and quality do, until all of `m_windows`
    windows have it in the same features: a column that is dead for good explains no new drift."""
    if kind in (Kind.DATA_DRIFT, Kind.LABEL_DRIFT):
        return False
    if kind == Kind.DATA_QUALITY or not report.bad_data:
        return kind == Kind.DATA_QUALITY
    recent = await records.recent(version.id, Kind.DATA_QUALITY, policy.m_windows)
    always = len(recent) == policy.m_windows and lasting(
        [v.drifted for v in recent], DRIFTED, policy.m_windows
    )
    return not always or not all(d.feature in always for d in report.features_with(Verdict.DATA_QUALITY))


def subjects_of(alert: Alert) -> frozenset[str]:
    """What an alert is about: features, or the version as a whole."""
    return frozenset(d.feature for d in alert.features) if alert.kind in OF_FEATURES else frozenset({WHOLE})


def retracts(
    before: WindowVerdict | None,
    span: Span,
    recent: Sequence[WindowVerdict],
    shown: Collection[str],
    policy: MonitorPolicy,
) -> bool:
    """Whether something that the alert has shown drifted in the window according to its earlier verdict, does
    no longer, and nothing that it has shown drifts in as many windows as an alert needs."""
    now = next((v.drifted for v in recent if v.span == span), {})
    corrected = before is not None and bool((before.drifted.keys() & set(shown)) - now.keys())
    return corrected and all(sum(one in v.drifted for v in recent) < policy.k_of for one in shown)


def evidence(kind: Kind, report: Report, subjects: Collection[str]) -> list[FeatureDrift]:
    """The features that an alert of this kind shows, most drifted first: those that it is about, or, if it
    concerns no feature, all that drifted in the window."""
    if kind in OF_FEATURES:
        return [d for d in report.features_with(*OF_FEATURES[kind]) if d.feature in subjects]
    return report.features_with(Verdict.DRIFT, Verdict.WARNING)


def reason_of(newest: WindowVerdict, subjects: Collection[str]) -> str:
    """The reason of an alert: that of its newest window, after what lasts if not all does."""
    named = sorted(one for one in newest.drifted if one in subjects)
    if not named or len(named) == len(newest.drifted):
        return newest.reason
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"{', '.join(named[:NAMED])}{more} over several windows; the newest one: {newest.reason}"
