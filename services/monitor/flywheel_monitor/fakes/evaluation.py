"""`Reports` in memory."""

from __future__ import annotations

from dataclasses import replace

from flywheel_common.paging import Page, cut, decode_token
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.ports import Frontier
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.verdicts import WindowVerdict
from flywheel_monitor.fakes.data import Data
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.span import Span, window_of
from flywheel_monitor.windows.watermark import ReachedTimes


class MemoryReports:
    _data: Data
    _pane_us: int

    async def reached_times(self) -> ReachedTimes:
        return ReachedTimes(_by_model(self._data.reached()), _by_model(self._data.reached_labels()))

    async def frontiers(self) -> list[Frontier]:
        waiting = {batch.key.model_version for _, batch in self._data.waiting.values()}
        frontiers = self._data.frontiers.values()
        return [f for f in frontiers if self._data.versions[f.version_id].name not in waiting]

    async def windows(self, version_id: int, start_us: int, end_us: int, window_us: int) -> list[Span]:
        times = [prediction.time for prediction, _ in self._data.served(version_id)]
        found = {window_of(time // self._pane_us * self._pane_us, window_us) for time in times}
        return sorted(span for span in found if start_us <= span.start_us < end_us)

    async def lock(self, version_id: int) -> WatchedVersion:
        return self._data.versions[version_id]

    async def put_report(self, version_id: int, report: Report) -> None:
        self._data.reports[version_id, report.span] = report

    async def put_verdict(self, version_id: int, kind: Kind, verdict: WindowVerdict) -> None:
        self._data.verdicts[version_id, kind, verdict.span] = verdict

    async def recent(self, version_id: int, kind: Kind, limit: int) -> list[WindowVerdict]:
        mine = [j for (v, k, _), j in self._data.verdicts.items() if (v, k) == (version_id, kind)]
        enough = [j for j in mine if j.verdict is not Verdict.INSUFFICIENT]
        return sorted(enough, key=lambda j: (j.span.end_us, j.span.start_us), reverse=True)[:limit]

    async def close(self, version_id: int, until_us: int, *, labels: bool) -> None:
        f = self._data.frontiers[version_id]
        self._data.frontiers[version_id] = (
            replace(f, labelled_until=max(f.labelled_until, until_us))
            if labels
            else replace(f, closed_until=max(f.closed_until, until_us))
        )

    async def reports(self, version_id: int, size: int, token: str) -> Page[Report]:
        query = repr(("reports", version_id))
        after = decode_token(token, query=query)
        mine = [r for (v, _), r in self._data.reports.items() if v == version_id and r.predictions > 0]
        mine.sort(key=_order, reverse=True)
        found = [r for r in mine if after is None or _order(r) < tuple(int(str(k)) for k in after)]
        return cut(found[: size + 1], size, _order, query=query)

    async def newest_report(self, version_id: int) -> Report | None:
        mine = [r for (v, _), r in self._data.reports.items() if v == version_id and r.predictions > 0]
        return max(mine, key=_order, default=None)

    async def late_windows(self, version_id: int, window_us: int, limit: int) -> list[Span]:
        starts = [start for version, start in self._data.late_pending if version == version_id]
        return sorted({window_of(start, window_us) for start in starts})[:limit]

    async def take_late(self, version_id: int, span: Span) -> None:
        mine = {key for key in self._data.late_pending if key[0] == version_id}
        self._data.late_pending -= {key for key in mine if span.start_us <= key[1] < span.end_us}

    async def late(self, version_id: int, span: Span) -> int:
        return sum(
            count
            for (version, start), count in self._data.late.items()
            if version == version_id and span.start_us <= start < span.end_us
        )

    async def verdict(self, version_id: int, kind: Kind, span: Span) -> WindowVerdict | None:
        return self._data.verdicts.get((version_id, kind, span))

    async def judged(self, version_id: int, span: Span) -> bool:
        return (version_id, span) in self._data.reports

    async def evaluated(self, project: str) -> int:
        models = self._data.models_of(project)
        return sum(self._data.versions[v].model_id in models for v, _ in self._data.reports)


def _order(report: Report) -> tuple[int, int]:
    return report.span.end_us, report.span.start_us


def _by_model(reached: dict[tuple[int, int], int]) -> dict[int, dict[int, int]]:
    """model id → partition → reached event time."""
    found: dict[int, dict[int, int]] = {}
    for (model, partition), time in reached.items():
        found.setdefault(model, {})[partition] = time
    return found
