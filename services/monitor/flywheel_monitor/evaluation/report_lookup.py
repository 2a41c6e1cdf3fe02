"""The report that GetDriftReport returns: the newest stored one, or one computed for a range."""

from __future__ import annotations

from typing import Protocol

from flywheel_common.postgres.transactions import Store
from flywheel_monitor.evaluation.ports import Reports
from flywheel_monitor.evaluation.report import Report, report_on
from flywheel_monitor.ingest.ports import CountedWindows
from flywheel_monitor.models.lookup import existing_policy
from flywheel_monitor.performance.ports import LabelledPredictions
from flywheel_monitor.references.errors import NoPredictions, NoReference
from flywheel_monitor.references.lookup import VersionRecords, find_version
from flywheel_monitor.windows.span import whole_panes


class ReportRecords(VersionRecords, CountedWindows, LabelledPredictions, Reports, Protocol):
    """What reports are read and computed from."""


async def find_report(
    store: Store[ReportRecords],
    name: str,
    *,
    start_us: int | None,
    end_us: int | None,
    segment: str,
    pane_us: int,
) -> Report:
    """Drift of a range, widened to whole panes, or of the newest judged window if both ends are None.
    Raises UnknownModel, NoPredictions, NoReference, InvalidTimeRange."""
    async with store.reading() as records:
        version = await find_version(records, name)
        if not version.reference.columns:
            raise NoReference(f"{version.name} has no reference to compare with: {version.reference.reason}.")
        policy = await existing_policy(records, version.model)
        if start_us is None and end_us is None:
            newest = await records.newest_report(version.id)
            if newest is None:
                raise NoPredictions(
                    f"No window of {version.name} is closed yet: give start_time and end_time, or wait."
                )
            if not segment:
                return newest
            span = newest.span
        else:
            span = version.kept(pane_us).readable(whole_panes(start_us, end_us, pane_us))
        window = await records.window(version, span, segment)
        quality = await records.quality(version.id, span, window, segment)
        late = await records.late(version.id, span) if not segment else 0
    if window.predictions == 0:
        raise NoPredictions(f"{version.name} served no predictions in this range.")
    return report_on(version, span, window, quality, policy, late)
