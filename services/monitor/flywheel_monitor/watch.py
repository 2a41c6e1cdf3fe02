"""The watch over windows: whichever the watermark has passed is judged, stored, and turned into alerts and events.

One replica at a time does it, under a lease. A window is judged when it closes (inputs, scores) and again when the
lateness of labels has passed (labels, quality, and whatever late events changed). Everything that follows from a
judgement is one transaction, so a crash repeats it whole or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from flywheel_common import topics
from flywheel_common.errors import FlywheelError
from flywheel_common.ids import Ids
from flywheel_common.logs import get_logger
from flywheel_common.outbox import enqueue
from flywheel_common.postgres import Connection, Pool, transaction
from flywheel_monitor.alerts import FEATURE_KINDS, LABEL_KINDS, Kind, step
from flywheel_monitor.convert import drift_detected
from flywheel_monitor.drift import FeatureDrift, Verdict
from flywheel_monitor.evaluation import Report, report_on, verdicts
from flywheel_monitor.gauges import Gauges
from flywheel_monitor.performance import Quality
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.references import WatchedVersion
from flywheel_monitor.score_shift import ScoreReference
from flywheel_monitor.store.alert_rows import Alerts
from flywheel_monitor.store.evaluations import Evaluations, Frontier, Judged
from flywheel_monitor.store.pane_rows import read_window
from flywheel_monitor.store.versions import Versions
from flywheel_monitor.windows import Behind, Marks, Span

log = get_logger(__name__)


class Watch:
    """`run` for ever, or `pass_once` for one round."""

    def __init__(
        self,
        pool: Pool,
        versions: Versions,
        evaluations: Evaluations,
        alerts: Alerts,
        gauges: Gauges,
        ids: Ids,
        *,
        behind: Callable[[], Awaitable[Behind]],
        delay_us: int,
        poll_seconds: float,
    ) -> None:
        self._pool = pool
        self._versions = versions
        self._evaluations = evaluations
        self._alerts = alerts
        self._gauges = gauges
        self._ids = ids
        self._behind = behind
        self._delay_us = delay_us
        self._poll = poll_seconds
        self._done: dict[int, tuple[Marks, MonitorPolicy]] = {}

    async def run(self) -> None:
        """Waits out outages of PostgreSQL and Kafka."""
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
        known = await self._evaluations.marks(await self._behind())
        policies = {model_id: (name, policy) for model_id, name, policy in await self._versions.policies()}
        count = 0
        for frontier in await self._evaluations.frontiers():
            marks = known.get(frontier.model_id)
            if marks is None:
                continue
            name, policy = policies[frontier.model_id]
            if self._done.get(frontier.version_id) == (marks, policy):
                continue
            self._gauges.watermark(name, marks.answers)
            count += await self._advance(frontier, marks, policy)
            await self._alerts.retire(
                frontier.version_id,
                marks.answers - self._delay_us - (policy.m_windows + 1) * policy.window_us,
            )
            self._done[frontier.version_id] = (marks, policy)
        self._gauges.alerts(await self._alerts.open_counts())
        return count

    async def _advance(self, frontier: Frontier, marks: Marks, policy: MonitorPolicy) -> int:
        count, width = 0, policy.window_us
        for labels, since, mark, delay in (
            (False, frontier.closed_until, marks.answers, self._delay_us),
            (True, frontier.labelled_until, marks.labels, max(self._delay_us, policy.lateness_us)),
        ):
            if mark is None:
                continue
            until = (mark - delay) // width * width
            if until <= since:
                continue
            for span in await self._evaluations.windows(
                frontier.version_id, since // width * width, until, width
            ):
                if span.end_us > since:
                    await self._judge(frontier.version_id, span, policy, labels=labels)
                    count += 1
            async with transaction(self._pool) as conn:
                await self._evaluations.close(conn, frontier.version_id, until, labels=labels)
        return count

    async def _judge(self, version_id: int, span: Span, policy: MonitorPolicy, *, labels: bool) -> None:
        async with transaction(self._pool) as conn:
            await self._evaluations.lock(conn, version_id)
            version = await self._versions.version_by_id(version_id, fresh=True)
            window = await read_window(conn, version_id, version.layout, span.start_us, span.end_us)
            if version.first_window is None and window.scored >= policy.min_predictions:
                mean, stddev = window.score_moments()
                first = ScoreReference(mean, stddev, window.scored, tuple(window.scores.tolist()))
                version = await self._versions.set_first_window(conn, version, first)
            quality = await self._evaluations.quality(conn, version_id, span, window) if labels else Quality()
            report = report_on(version, span, window, quality, policy)
            await self._evaluations.put(conn, version_id, report)
            kinds = (*FEATURE_KINDS, *LABEL_KINDS) if labels else FEATURE_KINDS
            for kind, (verdict, reason) in verdicts(report, version, policy, kinds).items():
                await self._evaluations.put_verdict(conn, version_id, kind, span, verdict, reason)
                await self._act(conn, version, kind, report, policy)
            await self._evaluations.close(conn, version_id, span.end_us, labels=labels)
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
        self, conn: Connection, version: WatchedVersion, kind: Kind, report: Report, policy: MonitorPolicy
    ) -> None:
        """What the newest verdicts of a kind mean for its alert."""
        recent = await self._evaluations.recent(conn, version.id, kind, policy.m_windows)
        if all(j.span != report.span for j in recent):
            return  # too few rows, or a revision of a window too old to count
        unresolved = await self._alerts.unresolved(conn, version.id, kind)
        todo = step(unresolved is not None, [j.verdict for j in recent], policy)
        newest = recent[0]
        features = evidence(kind, report)
        name = unresolved.name if unresolved else ""
        if todo.open:
            name = await self._alerts.open(
                conn, self._ids.new(), version.model, version.id, kind, newest.span, features, newest.reason
            )
            log.warning(
                "alert opened", alert=name, version=version.name, kind=kind.value, reason=newest.reason
            )
        elif todo.confirm and newest.span == report.span:
            await self._alerts.confirm(conn, version.id, kind, newest.span, features, newest.reason)
        elif todo.resolve:
            await self._alerts.resolve(
                conn, version.id, kind, f"{policy.m_windows} windows without it: {newest.reason}"
            )
            log.info("alert resolved", alert=name, version=version.name, kind=kind.value)
        if todo.announce and name:
            await self._announce(conn, version, kind, name, newest, features, report)

    async def _announce(
        self,
        conn: Connection,
        version: WatchedVersion,
        kind: Kind,
        alert: str,
        newest: Judged,
        features: Sequence[FeatureDrift],
        report: Report,
    ) -> None:
        reference = version.reference.hash
        if not await self._alerts.first_announcement(conn, version.id, kind, reference, newest.span):
            return
        event = drift_detected(
            alert=alert,
            model=version.model,
            model_version=version.name,
            span=newest.span,
            kind=kind,
            data_quality_cause=kind == Kind.DATA_QUALITY or report.bad_data,
            features=features,
            summary=newest.reason,
            reference_hash=reference,
        )
        await enqueue(conn, topics.DRIFT_DETECTED, event)


def evidence(kind: Kind, report: Report) -> list[FeatureDrift]:
    """The features that an alert of this kind shows, most drifted first."""
    if kind == Kind.DATA_QUALITY:
        return report.moved(Verdict.DATA_QUALITY)
    return report.moved(Verdict.DRIFT, Verdict.WARNING)
