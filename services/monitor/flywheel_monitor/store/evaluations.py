"""Windows that are due, their reports and verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flywheel_common.postgres import Connection, Pool, connection
from flywheel_monitor.alerts import Kind
from flywheel_monitor.drift import Verdict
from flywheel_monitor.evaluation import Report
from flywheel_monitor.layout import Window
from flywheel_monitor.performance import Quality, auc, quality_of_window
from flywheel_monitor.windows import Behind, Marks, Span, progress, watermark

_PROGRESS = "SELECT model_id, partition, newest_us FROM progress"
_LABEL_PROGRESS = "SELECT model_id, partition, newest_us FROM label_progress"
_FRONTIERS = "SELECT id, model_id, closed_until, labelled_until FROM model_version ORDER BY id"
_WINDOWS = """
SELECT DISTINCT start_us / $4 * $4 AS w FROM pane
WHERE model_version_id = $1 AND NOT shadow AND segment = '' AND start_us >= $2 AND start_us < $3 ORDER BY w
"""
_ROWS = """
SELECT array_agg(p.score) AS scores, array_agg(l.value) AS labels
FROM prediction p JOIN label l USING (prediction_id) JOIN variant t ON t.id = p.variant_id
WHERE t.model_version_id = $1 AND NOT p.shadow AND p.event_time >= $2 AND p.event_time < $3
  AND p.source IN (1, 2) AND p.score <> 'NaN' AND abs(p.score) <> 'Infinity' AND ($4 = '' OR p.segment = $4)
"""
_PUT_REPORT = """
INSERT INTO window_report (model_version_id, start_us, end_us, predictions, labelled, report) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (model_version_id, end_us, start_us) DO UPDATE SET predictions = excluded.predictions, labelled = excluded.labelled,
    report = excluded.report, revision = window_report.revision + 1, evaluated_at = now()
"""
_PUT_VERDICT = """
INSERT INTO window_verdict (model_version_id, kind, start_us, end_us, verdict, reason) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (model_version_id, kind, end_us, start_us) DO UPDATE SET verdict = excluded.verdict, reason = excluded.reason
"""
_RECENT = """
SELECT verdict, start_us, end_us, reason FROM window_verdict
WHERE model_version_id = $1 AND kind = $2 AND verdict <> 5 ORDER BY end_us DESC, start_us DESC LIMIT $3
"""
_NEWEST = """
SELECT report FROM window_report WHERE model_version_id = $1 AND predictions > 0 ORDER BY end_us DESC, start_us DESC LIMIT 1
"""
_CLOSE = "UPDATE model_version SET closed_until = greatest(closed_until, $2) WHERE id = $1"
_LABEL_CLOSE = "UPDATE model_version SET labelled_until = greatest(labelled_until, $2) WHERE id = $1"
_LOCK = "SELECT id FROM model_version WHERE id = $1 FOR UPDATE"
_EVALUATED = """
SELECT count(*) FROM window_report r JOIN model_version v ON v.id = r.model_version_id JOIN model m ON m.id = v.model_id
WHERE m.project = $1
"""


@dataclass(frozen=True)
class Frontier:
    """How far the windows of a version were evaluated, microseconds of event time."""

    version_id: int
    model_id: int
    closed_until: int
    labelled_until: int


@dataclass(frozen=True)
class Judged:
    """A stored verdict."""

    verdict: Verdict
    span: Span
    reason: str


class Evaluations:
    """Reads open connections of their own; writes go into the caller's transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def marks(self, behind: Behind) -> dict[int, Marks]:
        """model id → how far its stream is read, for the models of which that is known."""
        async with connection(self._pool) as conn:
            answers = _by_model(await conn.fetch(_PROGRESS))
            labels = _by_model(await conn.fetch(_LABEL_PROGRESS))
        found: dict[int, Marks] = {}
        for model_id, newest in answers.items():
            mark = watermark(progress(newest, behind.answers))
            if mark is None:
                continue
            label_mark = (
                watermark(progress(labels.get(model_id, {}), behind.outcomes)) if behind.outcomes else mark
            )
            found[model_id] = Marks(mark, None if label_mark is None else min(mark, label_mark))
        return found

    async def frontiers(self) -> list[Frontier]:
        async with connection(self._pool) as conn:
            return [
                Frontier(r["id"], r["model_id"], r["closed_until"], r["labelled_until"])
                for r in await conn.fetch(_FRONTIERS)
            ]

    async def windows(self, version_id: int, start_us: int, end_us: int, window_us: int) -> list[Span]:
        """Windows in [start, end) that served anybody, oldest first."""
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_WINDOWS, version_id, start_us, end_us, window_us)
        return [Span(r["w"], r["w"] + window_us) for r in rows]

    async def lock(self, conn: Connection, version_id: int) -> None:
        """One evaluation of a version at a time."""
        await conn.execute(_LOCK, version_id)

    async def quality(
        self, conn: Connection, version_id: int, span: Span, window: Window, segment: str = ""
    ) -> Quality:
        """From the window's counts; the AUC from the stored rows while all of them are still kept."""
        quality = quality_of_window(window)
        if quality.labelled == 0:
            return quality
        row = await conn.fetchrow(_ROWS, version_id, span.start_us, span.end_us, segment)
        scores = np.array(row["scores"] or [], np.float64)
        if len(scores) != quality.labelled:
            return quality
        return replace(quality, auc=auc(scores, np.array(row["labels"], np.float64)))

    async def put(self, conn: Connection, version_id: int, report: Report) -> None:
        await conn.execute(
            _PUT_REPORT,
            version_id,
            report.span.start_us,
            report.span.end_us,
            report.predictions,
            report.quality.labelled,
            json.dumps(report.to_json()),
        )

    async def put_verdict(
        self, conn: Connection, version_id: int, kind: Kind, span: Span, verdict: Verdict, reason: str
    ) -> None:
        await conn.execute(
            _PUT_VERDICT, version_id, kind.value, span.start_us, span.end_us, int(verdict), reason
        )

    async def recent(self, conn: Connection, version_id: int, kind: Kind, limit: int) -> list[Judged]:
        """Newest first, without windows that had too few rows."""
        rows = await conn.fetch(_RECENT, version_id, kind.value, limit)
        return [Judged(Verdict(r["verdict"]), Span(r["start_us"], r["end_us"]), r["reason"]) for r in rows]

    async def close(self, conn: Connection, version_id: int, until_us: int, *, labels: bool) -> None:
        """Windows that end at or before this are done."""
        await conn.execute(_LABEL_CLOSE if labels else _CLOSE, version_id, until_us)

    async def newest_report(self, version_id: int) -> Report | None:
        async with connection(self._pool) as conn:
            stored = await conn.fetchval(_NEWEST, version_id)
        return None if stored is None else Report.from_json(json.loads(stored))

    async def evaluated(self, project: str) -> int:
        """Windows evaluated so far."""
        async with connection(self._pool) as conn:
            return int(await conn.fetchval(_EVALUATED, project))


def _by_model(rows: Sequence[Mapping[str, int]]) -> dict[int, dict[int, int]]:
    """model id → partition → newest event time."""
    found: dict[int, dict[int, int]] = {}
    for r in rows:
        found.setdefault(r["model_id"], {})[r["partition"]] = r["newest_us"]
    return found
