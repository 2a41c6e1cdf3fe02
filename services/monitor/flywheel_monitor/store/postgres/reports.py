"""Reports, verdicts and frontiers in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.ports import Frontier
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.verdicts import WindowVerdict
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.store.postgres.progress import reached
from flywheel_monitor.store.postgres.versions import SELECT_VERSION, watched_version
from flywheel_monitor.windows.pieces import rollup_widths
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.watermark import ReachedTimes

_FRONTIERS = """
SELECT id, model_id, closed_until, labelled_until FROM model_version v
WHERE NOT EXISTS (SELECT FROM waiting_batch w WHERE w.model_version = v.name) ORDER BY id
"""
_WINDOWS = """
SELECT DISTINCT p.start_us / $4 * $4 AS w FROM pane p JOIN variant t ON t.id = p.variant_id
    JOIN model_version v ON v.id = t.model_version_id
WHERE v.id = $1 AND t.role <> 3 AND p.segment = ''
    AND p.width_us = CASE WHEN v.rolled_up THEN $5::bigint ELSE $6::bigint END
    AND p.start_us >= $2 AND p.start_us < $3 ORDER BY w
"""
_PUT_REPORT = """
INSERT INTO window_report (model_version_id, start_us, end_us, predictions, labelled, report)
    VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (model_version_id, end_us, start_us) DO UPDATE
    SET predictions = excluded.predictions, labelled = excluded.labelled,
    report = excluded.report, revision = window_report.revision + 1, evaluated_at = now()
"""
_REPORTS = """
SELECT report, end_us, start_us FROM window_report WHERE model_version_id = $1 AND predictions > 0
    AND ($2::bigint IS NULL OR (end_us, start_us) < ($2, $3::bigint))
    ORDER BY end_us DESC, start_us DESC LIMIT $4
"""
_PUT_VERDICT = """
INSERT INTO window_verdict (model_version_id, kind, start_us, end_us, verdict, reason, drifted)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (model_version_id, kind, end_us, start_us) DO UPDATE
    SET verdict = excluded.verdict, reason = excluded.reason, drifted = excluded.drifted
"""
_RECENT = """
SELECT verdict, start_us, end_us, reason, drifted FROM window_verdict
WHERE model_version_id = $1 AND kind = $2 AND verdict <> 5 ORDER BY end_us DESC, start_us DESC LIMIT $3
"""
_NEWEST = """
SELECT report FROM window_report WHERE model_version_id = $1 AND predictions > 0
    ORDER BY end_us DESC, start_us DESC LIMIT 1
"""
_VERDICT = """
SELECT verdict, start_us, end_us, reason, drifted FROM window_verdict
WHERE model_version_id = $1 AND kind = $2 AND start_us = $3 AND end_us = $4
"""
_JUDGED = """
SELECT EXISTS (SELECT FROM window_report WHERE model_version_id = $1 AND start_us = $2 AND end_us = $3)
"""
_CLOSE = "UPDATE model_version SET closed_until = greatest(closed_until, $2) WHERE id = $1"
_LABEL_CLOSE = "UPDATE model_version SET labelled_until = greatest(labelled_until, $2) WHERE id = $1"
_LOCK = SELECT_VERSION + "WHERE v.id = $1 FOR UPDATE OF v"
_EVALUATED = """
SELECT count(*) FROM window_report r JOIN model_version v ON v.id = r.model_version_id
    JOIN model m ON m.id = v.model_id
WHERE m.project = $1
"""


class ReportRows:
    """`Reports` on the transaction's connection."""

    _conn: Connection
    _pane_us: int

    async def reached_times(self) -> ReachedTimes:
        predictions = await reached(self._conn, labels=False)
        return ReachedTimes(predictions, await reached(self._conn, labels=True))

    async def frontiers(self) -> list[Frontier]:
        return [
            Frontier(r["id"], r["model_id"], r["closed_until"], r["labelled_until"])
            for r in await self._conn.fetch(_FRONTIERS)
        ]

    async def windows(self, version_id: int, start_us: int, end_us: int, window_us: int) -> list[Span]:
        rows = await self._conn.fetch(
            _WINDOWS, version_id, start_us, end_us, window_us, self._enumerated(window_us), self._pane_us
        )
        return [Span(r["w"], r["w"] + window_us) for r in rows]

    def _enumerated(self, window_us: int) -> int:
        """The width of the panes that windows are found by: hours, which are never deleted, if they fit."""
        hour = rollup_widths(self._pane_us)[:1]
        return hour[0] if hour and window_us % hour[0] == 0 else self._pane_us

    async def lock(self, version_id: int) -> WatchedVersion:
        return watched_version(await self._conn.fetchrow(_LOCK, version_id))

    async def put_report(self, version_id: int, report: Report) -> None:
        await self._conn.execute(
            _PUT_REPORT,
            version_id,
            report.span.start_us,
            report.span.end_us,
            report.predictions,
            report.quality.labelled,
            json.dumps(report.to_json()),
        )

    async def put_verdict(self, version_id: int, kind: Kind, verdict: WindowVerdict) -> None:
        span = verdict.span
        fields = (span.start_us, span.end_us, int(verdict.verdict), verdict.reason)
        await self._conn.execute(
            _PUT_VERDICT, version_id, kind.value, *fields, json.dumps(dict(verdict.drifted))
        )

    async def verdict(self, version_id: int, kind: Kind, span: Span) -> WindowVerdict | None:
        row = await self._conn.fetchrow(_VERDICT, version_id, kind.value, span.start_us, span.end_us)
        return None if row is None else _window_verdict(row)

    async def judged(self, version_id: int, span: Span) -> bool:
        return bool(await self._conn.fetchval(_JUDGED, version_id, span.start_us, span.end_us))

    async def recent(self, version_id: int, kind: Kind, limit: int) -> list[WindowVerdict]:
        rows = await self._conn.fetch(_RECENT, version_id, kind.value, limit)
        return list(map(_window_verdict, rows))

    async def close(self, version_id: int, until_us: int, *, labels: bool) -> None:
        await self._conn.execute(_LABEL_CLOSE if labels else _CLOSE, version_id, until_us)

    async def reports(self, version_id: int, size: int, token: str) -> Page[Report]:
        query = repr(("reports", version_id))
        key = decode_token(token, query=query) or [None, None]
        rows = await self._conn.fetch(_REPORTS, version_id, key[0], key[1], size + 1)
        page = cut(rows, size, lambda r: [r["end_us"], r["start_us"]], query=query)
        return Page([Report.from_json(json.loads(r["report"])) for r in page.items], page.next_page_token)

    async def newest_report(self, version_id: int) -> Report | None:
        stored = await self._conn.fetchval(_NEWEST, version_id)
        return None if stored is None else Report.from_json(json.loads(stored))

    async def evaluated(self, project: str) -> int:
        return int(await self._conn.fetchval(_EVALUATED, project))


def _window_verdict(row: Mapping[str, Any]) -> WindowVerdict:
    drifted = {subject: Verdict(verdict) for subject, verdict in json.loads(row["drifted"]).items()}
    return WindowVerdict(
        Verdict(row["verdict"]), Span(row["start_us"], row["end_us"]), row["reason"], drifted
    )
