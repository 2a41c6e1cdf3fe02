"""The watch over windows: whichever the watermark has passed is judged, stored, and turned into alerts and events.

One replica at a time does it, under a lease. A window is judged when it closes (inputs, scores) and again when the
lateness of labels has passed (labels, quality, and whatever late events changed). Everything that follows from a
judgement is one transaction, so a crash repeats it whole or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from flywheel_common.errors import FlywheelError
from flywheel_common.ids import Ids
from flywheel_common.telemetry.logs import get_logger
from flywheel_monitor.alert import Announcement
from flywheel_monitor.alerts import FEATURE_KINDS, LABEL_KINDS, Kind, step
from flywheel_monitor.drift import FeatureDrift, Verdict
from flywheel_monitor.evaluation import Report, report_on, verdicts
from flywheel_monitor.gauges import Gauges
from flywheel_monitor.performance import Quality
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.ports import Records, Store
from flywheel_monitor.references import WatchedVersion
from flywheel_monitor.score_shift import ScoreReference
from flywheel_monitor.windows import Behind, Frontier, Marks, Span, marks

log = get_logger(__name__)


class Watch:
    """`run` for ever, or `pass_once` for one round."""

    def __init__(
        self,
        store: Store,
        gauges: Gauges,
        ids: Ids,
        *,
        behind: Callable[[], Awaitable[Behind]],
        delay_us: int,
        poll_seconds: float,
    ) -> None:
        self._store = store
        self._gauges = gauges
        self._ids = ids
        self._behind = behind
        self._delay_us = delay_us
        self._poll = poll_seconds
        self._done: dict[int, tuple[Marks, MonitorPolicy]] = {}

    async def run(self) -> None:
        """Waits out outages of the store and of Kafka."""
        while True:
            try:
                await self.pass_once()
            except FlywheelError as error:
                if not error.retryable:
                    raise
                log.warning("watch waits", reason=error.reason)
                await asyncio.sleep(1.0)
            await asyncio.sleep(self._poll)

    async def pass_once(self) -> int:
        """Judges every window that is due; returns how many judgements were made."""
        async with self._store.reading() as records:
            newest = await records.read_up_to()
        # The broker is asked after that: an answer counted later may be ahead of older ones that came meanwhile and wait unread
        # in another partition, and would close their window without them.
        known = marks(newest, await self._behind())
        async with self._store.reading() as records:
            policies = {model_id: (name, policy) for model_id, name, policy in await records.policies()}
            frontiers = await records.frontiers()
        count = 0
        for frontier in frontiers:
            read = known.get(frontier.model_id)
            if read is None:
                continue
            name, policy = policies[frontier.model_id]
            if self._done.get(frontier.version_id) == (read, policy):
                continue
            self._gauges.watermark(name, read.answers)
            count += await self._advance(frontier, read, policy)
            silent_since = read.answers - self._delay_us - (policy.m_windows + 1) * policy.window_us
            async with self._store.transaction() as records:
                await records.retire_alerts(frontier.version_id, silent_since)
            self._done[frontier.version_id] = (read, policy)
        async with self._store.reading() as records:
            self._gauges.alerts(await records.open_alerts())
        return count

    async def _advance(self, frontier: Frontier, read: Marks, policy: MonitorPolicy) -> int:
        count, width = 0, policy.window_us
        for labels, since, mark, delay in (
            (False, frontier.closed_until, read.answers, self._delay_us),
            (True, frontier.labelled_until, read.labels, max(self._delay_us, policy.lateness_us)),
        ):
            if mark is None:
                continue
            until = (mark - delay) // width * width
            if until <= since:
                continue
            async with self._store.reading() as records:
                spans = await records.windows(frontier.version_id, since // width * width, until, width)
            for span in spans:
                if span.end_us > since:
                    await self._judge(frontier.version_id, span, policy, labels=labels)
                    count += 1
            async with self._store.transaction() as records:
                await records.close(frontier.version_id, until, labels=labels)
        return count

    async def _judge(self, version_id: int, span: Span, policy: MonitorPolicy, *, labels: bool) -> None:
        async with self._store.transaction() as records:
            version = await records.lock(version_id)
            window = await records.window(version, span)
            if version.first_window is None and window.scored >= policy.min_predictions:
                mean, stddev = window.score_moments()
                first = ScoreReference(mean, stddev, window.scored, tuple(window.scores.tolist()))
                await records.set_first_window(version_id, first)
                version = replace(version, first_window=first)
            quality = await records.quality(version_id, span, window) if labels else Quality()
            report = report_on(version, span, window, quality, policy)
            await records.put_report(version_id, report)
            kinds = (*FEATURE_KINDS, *LABEL_KINDS) if labels else FEATURE_KINDS
            for kind, (verdict, reason) in verdicts(report, version, policy, kinds).items():
                await records.put_verdict(version_id, kind, span, verdict, reason)
                await self._act(records, version, kind, report, policy)
            await records.close(version_id, span.end_us, labels=labels)
        self._gauges.report(report)
        log.info(
            "window judged",
            version=version.name,
            start=span.start_us,
            end=span.end_us,
            labels=labels,
            predictions=report.predictions,
            verdict=report.verdict.name,
            score_shift=round(report.score.shift, 3),
        )

    async def _act(
        self, records: Records, version: WatchedVersion, kind: Kind, report: Report, policy: MonitorPolicy
    ) -> None:
        """What the newest verdicts of a kind mean for its alert."""
        recent = await records.recent(version.id, kind, policy.m_windows)
        if all(j.span != report.span for j in recent):
            return  # too few rows, or a revision of a window too old to count
        unresolved = await records.unresolved(version.id, kind)
        todo = step(unresolved is not None, [j.verdict for j in recent], policy)
        newest = recent[0]
        features = evidence(kind, report)
        name = unresolved.name if unresolved else ""
        if todo.open:
            name = await records.open_alert(
                self._ids.new(), version, kind, newest.span, features, newest.reason
            )
            log.warning(
                "alert opened", alert=name, version=version.name, kind=kind.value, reason=newest.reason
            )
        elif todo.confirm and newest.span == report.span:
            await records.confirm_alert(version.id, kind, newest.span, features, newest.reason)
        elif todo.resolve:
            await records.end_alert(
                version.id, kind, f"{policy.m_windows} windows without it: {newest.reason}"
            )
            log.info("alert resolved", alert=name, version=version.name, kind=kind.value)
        if todo.announce and name:
            await records.announce(
                Announcement(
                    alert=name,
                    model=version.model,
                    model_version=version.name,
                    version_id=version.id,
                    kind=kind,
                    span=newest.span,
                    data_quality_cause=kind == Kind.DATA_QUALITY or report.bad_data,
                    features=features,
                    summary=newest.reason,
                    reference_hash=version.reference.hash,
                )
            )


def evidence(kind: Kind, report: Report) -> list[FeatureDrift]:
    """The features that an alert of this kind shows, most drifted first."""
    if kind == Kind.DATA_QUALITY:
        return report.moved(Verdict.DATA_QUALITY)
    return report.moved(Verdict.DRIFT, Verdict.WARNING)
