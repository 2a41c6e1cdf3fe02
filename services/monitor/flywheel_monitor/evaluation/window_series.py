"""Reports on consecutive windows of any width, computed when they are read."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.evaluation.report import Report, report_on
from flywheel_monitor.evaluation.report_lookup import ReportRecords, seasonal_window
from flywheel_monitor.models.lookup import existing_policy
from flywheel_monitor.references.lookup import find_version
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.errors import InvalidTimeRange
from flywheel_monitor.windows.span import ALL_TIME, Span, whole_panes, window_of

WINDOWS_AT_ONCE = 100
"""Windows of one page, which bounds its time."""
LEAST_WINDOW_US = 1_000_000


async def find_series(
    store: Store[ReportRecords],
    name: str,
    window_us: int,
    *,
    start_us: int | None,
    end_us: int | None,
    segment: str,
    pane_us: int,
    size: int,
    token: str,
) -> Page[Report]:
    """Reports on the windows of this width that have predictions and begin in the range, newest first; they
    are aligned to 1970-01-01T00:00:00Z. A pane counts in the window in which it begins, so that each
    prediction is in one window whatever the width is; the span of a report is that of its panes. Panes that
    are deleted but for hours have windows of whole hours only. A page may have fewer than `size` windows.
    Raises UnknownModel, NoPredictions, InvalidTimeRange, InvalidPageToken."""
    if window_us < LEAST_WINDOW_US:
        raise InvalidTimeRange("window must be at least 1 s.", field="window")
    range_ = whole_panes(start_us, end_us, pane_us)
    query = repr((name, window_us, start_us, end_us, segment))
    after = decode_token(token, query=query)
    async with store.reading() as records:
        version = await find_version(records, name)
        policy = await existing_policy(records, version.model)
        first, last = await records.event_range(version, ALL_TIME, segment)
        if first is None or last is None:
            return Page([], "")
        oldest = window_of(first // pane_us * pane_us, window_us).start_us
        low = max(oldest, -(-range_.start_us // window_us) * window_us)
        until = -(-range_.end_us // window_us) * window_us if after is None else int(str(after[0]))
        high = min(window_of(last, window_us).end_us, until)
        spans = await _newest(records, version, window_us, low, high, min(size, WINDOWS_AT_ONCE) + 1)
        page = cut(spans, min(size, WINDOWS_AT_ONCE), lambda span: [span.start_us], query=query)
        reports = []
        for found in page.items:
            span = Span(*(-(-edge // pane_us) * pane_us for edge in (found.start_us, found.end_us)))
            if version.kept(pane_us).readable(span) != span:
                continue
            window = await records.window(version, span, segment)
            if window.predictions:
                quality = await records.quality(version.id, span, window, segment)
                late = 0 if segment else await records.late(version.id, span)
                earlier = await seasonal_window(records, version, span, policy, segment)
                reports.append(report_on(version, span, window, quality, policy, late, earlier=earlier))
    return Page(reports, page.next_page_token)


async def _newest(
    records: ReportRecords, version: WatchedVersion, window_us: int, low: int, high: int, limit: int
) -> Sequence[Span]:
    """The newest windows with predictions that begin in [low, high), newest first. Gaps are passed in steps
    of double width."""
    found: list[Span] = []
    width = limit * window_us
    while high > low and len(found) < limit:
        since = max(low, high - width)
        found += reversed(await records.windows(version.id, since, high, window_us))
        high, width = since, 2 * width
    return found[:limit]
