"""Evaluation of windows: every window that the watermark has passed is judged, stored, and turned into alerts
and events.

One replica evaluates at a time, under a lease. A window is judged when it closes (features, scores) and again
when the lateness of labels has passed (labels, quality, and what late events changed). A judgement and its
effects are one transaction, so that after a crash it is repeated as a whole or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from flywheel_common.errors import FlywheelError
from flywheel_common.ids import Ids
from flywheel_common.postgres.transactions import Store
from flywheel_common.telemetry.logs import get_logger
from flywheel_monitor.alerts.lifecycle import FEATURE_KINDS, LABEL_KINDS
from flywheel_monitor.evaluation.alerting import AlertingRecords, update_alert
from flywheel_monitor.evaluation.metrics import EvaluationMetrics
from flywheel_monitor.evaluation.ports import Frontier
from flywheel_monitor.evaluation.report import report_on
from flywheel_monitor.evaluation.report_lookup import ReportRecords, seasonal_window
from flywheel_monitor.evaluation.verdicts import verdicts
from flywheel_monitor.evaluation.window_figures import window_figures
from flywheel_monitor.models.lookup import existing_policy
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.reference import ScoreReference
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.watermark import UnreadPartitions, Watermarks, watermarks

log = get_logger(__name__)


WINDOWS_AT_ONCE = 100
"""Windows with late predictions that one pass judges again per version."""


class EvaluationRecords(ReportRecords, AlertingRecords, Protocol):
    """What evaluation reads and changes."""


class Evaluator:
    """Judges windows: `run` forever, `pass_once` for one pass over all versions."""

    def __init__(
        self,
        store: Store[EvaluationRecords],
        metrics: EvaluationMetrics,
        ids: Ids,
        *,
        unread: Callable[[], Awaitable[UnreadPartitions]],
        delay_us: int,
        poll_seconds: float,
    ) -> None:
        """`delay_us`: event time that a window stays open after the watermark has passed its end."""
        self._store = store
        self._metrics = metrics
        self._ids = ids
        self._unread = unread
        self._delay_us = delay_us
        self._poll = poll_seconds
        self._done: dict[int, tuple[Watermarks, MonitorPolicy]] = {}
        self._changed: set[int] = set()
        """Versions with windows that were judged and are not shown yet."""

    async def run(self) -> None:
        """Continues after outages of the store and of Kafka. Exports no gauges after its end."""
        self._done.clear()
        self._changed.clear()
        try:
            await self._show_newest()
            while True:
                try:
                    await self.pass_once()
                except FlywheelError as error:
                    if not error.retryable:
                        raise
                    log.warning("evaluation waits for a dependency", reason=error.reason)
                    await asyncio.sleep(1.0)
                await asyncio.sleep(self._poll)
        finally:
            self._metrics.stop()

    async def _show_newest(self) -> None:
        async with self._store.reading() as records:
            for frontier in await records.frontiers():
                report = await records.newest_report(frontier.version_id)
                if report is not None:
                    self._metrics.show(report)
                    self._changed.add(frontier.version_id)

    async def _show_figures(self) -> None:
        """Show the newest window of the versions that were judged, once per pass: many windows may have been
        judged to catch up."""
        while self._changed:
            version_id = next(iter(self._changed))
            async with self._store.reading() as records:
                report = await records.newest_report(version_id)
                version = None if report is None else await records.version(report.model_version)
                if report is not None and version is not None:
                    policy = await existing_policy(records, version.model)
                    figures = await window_figures(records, version, report, policy)
                    self._metrics.figures(version.name, figures)
            self._changed.discard(version_id)

    async def pass_once(self) -> int:
        """Judge every window that is due; returns the number of judgements."""
        async with self._store.reading() as records:
            reached = await records.reached_times()
        # The order matters: the lag is read after the reached times. A prediction counted in between could be
        # ahead of older ones that are unread in another partition, and would close their window without them.
        known = watermarks(reached, await self._unread())
        async with self._store.reading() as records:
            policies = {model_id: (name, policy) for model_id, name, policy in await records.policies()}
            frontiers = await records.frontiers()
        count = 0
        for frontier in frontiers:
            name, policy = policies[frontier.model_id]
            count += await self._correct(frontier, policy)
            read = known.get(frontier.model_id)
            if read is None:
                continue
            if self._done.get(frontier.version_id) == (read, policy):
                continue
            self._metrics.watermark(name, read.predictions)
            count += await self._advance(frontier, read, policy)
            silent_since = read.predictions - self._delay_us - (policy.m_windows + 1) * policy.window_us
            async with self._store.transaction() as records:
                await records.retire_alerts(frontier.version_id, silent_since)
            self._done[frontier.version_id] = (read, policy)
        async with self._store.reading() as records:
            self._metrics.alerts(await records.open_alerts())
        await self._show_figures()
        return count

    async def _advance(self, frontier: Frontier, read: Watermarks, policy: MonitorPolicy) -> int:
        """Judge the windows of a version that the watermarks have passed, without and with labels."""
        count, width = 0, policy.window_us
        for labels, since, mark, delay in (
            (False, frontier.closed_until, read.predictions, self._delay_us),
            (True, frontier.labelled_until, read.labels, max(self._delay_us, policy.lateness_us)),
        ):
            if mark is None:
                continue
            until = (mark - delay) // width * width
            if until <= since:
                continue
            judged: set[Span] = set()
            while True:
                async with self._store.transaction() as records:
                    await records.lock(frontier.version_id)
                    spans = await records.windows(frontier.version_id, since // width * width, until, width)
                    due = [span for span in spans if span.end_us > since and span not in judged]
                    if not due:
                        # Under the lock: predictions that come from here on find their windows closed.
                        await records.close(frontier.version_id, until, labels=labels)
                        break
                for span in due:
                    await self._judge(frontier.version_id, span, policy, labels=labels)
                    judged.add(span)
            count += len(judged)
        return count

    async def _correct(self, frontier: Frontier, policy: MonitorPolicy) -> int:
        """Judge windows again that got late predictions: those inside the lateness, and those that were
        passed without any prediction, as by live traffic beside a replay."""
        async with self._store.reading() as records:
            spans = await records.late_windows(frontier.version_id, policy.window_us, WINDOWS_AT_ONCE)
            due = [
                span.end_us > frontier.labelled_until or not await records.judged(frontier.version_id, span)
                for span in spans
            ]
        for span, again in zip(spans, due, strict=True):
            if again:
                final = span.end_us <= frontier.labelled_until
                await self._judge(frontier.version_id, span, policy, labels=final)
            else:
                async with self._store.transaction() as records:
                    await records.take_late(frontier.version_id, span)
        return sum(due)

    async def _judge(self, version_id: int, span: Span, policy: MonitorPolicy, *, labels: bool) -> None:
        async with self._store.transaction() as records:
            version = await records.lock(version_id)
            await records.take_late(version_id, span)
            window = await records.window(version, span)
            if version.first_window is None and window.scored >= policy.min_predictions:
                mean, stddev = window.score_moments()
                first = ScoreReference(
                    mean,
                    stddev,
                    window.scored,
                    tuple(window.scores.tolist()),
                    tuple(window.predicted.tolist()),
                    tuple(map(tuple, window.projection_blocks().sum(axis=0).tolist())),
                )
                await records.set_first_window(version_id, first)
                version = replace(version, first_window=first)
            quality = await records.quality(version_id, span, window) if labels else Quality()
            if quality.labels and not version.first_labels and quality.labelled >= policy.min_labels:
                await records.set_first_labels(version_id, quality.labels)
                version = replace(version, first_labels=quality.labels)
            late = await records.late(version_id, span)
            earlier = await seasonal_window(records, version, span, policy)
            report = report_on(version, span, window, quality, policy, late, earlier=earlier)
            await records.put_report(version_id, report)
            kinds = (*FEATURE_KINDS, *LABEL_KINDS) if labels else FEATURE_KINDS
            for kind, verdict in verdicts(report, version, policy, kinds).items():
                before = await records.verdict(version_id, kind, span)
                await records.put_verdict(version_id, kind, verdict)
                await update_alert(records, self._ids, version, kind, report, policy, before)
            await records.close(version_id, span.end_us, labels=labels)
        self._metrics.report(report)
        self._changed.add(version_id)
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
