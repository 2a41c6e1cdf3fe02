"""The replay of a range of event time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from flywheel_common.postgres.transactions import Store
from flywheel_monitor.evaluation.report_lookup import ReportRecords, seasonal_window
from flywheel_monitor.models.lookup import existing_policy
from flywheel_monitor.replay.difference import MAX_DIFFERENCES, Difference, ReplayProgress
from flywheel_monitor.replay.ports import EventLog, Scratch, ScratchStates
from flywheel_monitor.replay.verdicts import report_difference
from flywheel_monitor.windows.span import Span

PROGRESS_RECORDS = 2_000
"""Records between two messages about progress."""


class Replays:
    """Counts and judges a range again. A record arrives at most `skew_us` before its event time, so that the
    records of a range arrived after its start less that."""

    def __init__(
        self, store: Store[ReportRecords], log: EventLog, states: ScratchStates, *, skew_us: int
    ) -> None:
        self._store = store
        self._log = log
        self._states = states
        self._skew_us = skew_us

    async def run(self, model: str, span: Span) -> AsyncGenerator[ReplayProgress, None]:
        """Progress, and at last the result. Raises UnknownModel, ReplayRunning, KafkaUnavailable."""
        async with self._store.reading() as records:
            await existing_policy(records, model)
        since_us = span.start_us - self._skew_us
        async with (
            self._states.open(model, span.start_us, span.end_us) as scratch,
            self._log.range(since_us, scratch.positions) as log,
        ):
            read, told = 0, 0
            yield ReplayProgress(0, log.records)
            async for part in log.read():
                await scratch.take(part)
                read += len(part)
                if read - told >= PROGRESS_RECORDS:
                    told = read
                    yield ReplayProgress(read, log.records)
            panes, differences = await scratch.pane_differences(MAX_DIFFERENCES)
            reports = 0
            async for difference in self._judged(scratch):
                reports += 1
                if difference is not None:
                    differences.append(difference)
            yield ReplayProgress(
                read,
                log.records,
                finished=True,
                panes=panes,
                reports=reports,
                differences=tuple(differences[:MAX_DIFFERENCES]),
                complete_from_us=log.complete_from_us,
            )

    async def _judged(self, scratch: Scratch) -> AsyncIterator[Difference | None]:
        """One item per stored report: its difference, if any."""
        async for stored in scratch.reports():
            async with scratch.store.reading() as records:
                version = await records.version(stored.model_version)
                assert version is not None
                policy = await existing_policy(records, version.model)
                window = await records.window(version, stored.span)
                quality = await records.quality(version.id, stored.span, window)
            async with self._store.reading() as live:
                # The weeks before are not replayed, and both stores give a version the same id.
                earlier = await seasonal_window(live, version, stored.span, policy)
            what = report_difference(stored, version, window, quality, policy, earlier)
            yield Difference(version.name, stored.span, f"report: {what}") if what else None
