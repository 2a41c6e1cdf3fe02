"""Counted windows and stored predictions in PostgreSQL."""

from __future__ import annotations

import numpy as np

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.comparison.variants import VariantRows
from flywheel_monitor.ingest.batches import IngestCounts, Role
from flywheel_monitor.performance.quality import Quality, quality, totals_of_window, with_exact_auc
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.panes import PackedPane, sum_panes
from flywheel_monitor.windows.rows import usable_scores
from flywheel_monitor.windows.span import Span

_PANES = """
SELECT start_us, predictions, counts, sums FROM pane
WHERE model_version_id = $1 AND NOT shadow AND segment = $2 AND start_us >= $3 AND start_us < $4
"""
# The same condition as `usable_scores`.
_LABELLED = """
SELECT array_agg(p.score) AS scores, array_agg(l.value) AS labels
FROM prediction p JOIN label l USING (model_id, prediction_id) JOIN variant t ON t.id = p.variant_id
WHERE t.model_version_id = $1 AND p.shadow_variant = 0 AND p.event_time >= $2 AND p.event_time < $3
  AND p.source IN (1, 2) AND p.score <> 'NaN' AND abs(p.score) <> 'Infinity' AND ($4 = '' OR p.segment = $4)
"""
_VARIANT = """
SELECT array_agg(p.prediction_id) AS ids, array_agg(p.event_time) AS times, array_agg(p.score) AS scores,
    array_agg(coalesce(l.value, 'NaN')) AS labels, array_agg(p.decision) AS decisions,
    array_agg(p.latency_ms) AS latencies, array_agg(p.source) AS sources, array_agg(p.failed) AS failed
FROM variant t JOIN prediction p ON p.variant_id = t.id LEFT JOIN label l USING (model_id, prediction_id)
WHERE t.rollout = $1 AND t.release = $2 AND t.role = $3 AND p.event_time >= $4
    AND ($5::bigint = 0 OR t.generation = $5)
"""
_EVENT_RANGE = """
SELECT min(p.event_time), max(p.event_time) FROM prediction p JOIN variant t ON t.id = p.variant_id
WHERE t.model_version_id = $1 AND p.shadow_variant = 0 AND p.event_time >= $2 AND p.event_time < $3
    AND ($4 = '' OR p.segment = $4)
"""
_PRUNE = """
WITH old AS (
    SELECT p.ctid FROM prediction p JOIN variant t ON t.id = p.variant_id
    JOIN (
        SELECT model_id, max(reached_us) AS reached FROM progress WHERE NOT labels GROUP BY model_id
    ) w USING (model_id)
    WHERE p.event_time < w.reached - $1 LIMIT 20000
), gone AS (DELETE FROM prediction WHERE ctid IN (SELECT ctid FROM old) RETURNING model_id, prediction_id),
labels AS (
    DELETE FROM label WHERE (model_id, prediction_id) IN (SELECT model_id, prediction_id FROM gone)
)
SELECT count(*) FROM gone
"""
_STATUS = """
SELECT coalesce(sum(predictions), 0) AS predictions, coalesce(sum(outcomes), 0) AS outcomes,
    coalesce(sum(orphans), 0) AS orphans, coalesce(sum(duplicates), 0) AS duplicates
FROM ingest_count c JOIN model m ON m.id = c.model_id WHERE m.project = $1
"""
_REACHED = """
SELECT max(reached_us) FROM progress p JOIN model m ON m.id = p.model_id WHERE m.project = $1 AND NOT labels
"""


class PredictionRows:
    """`CountedWindows`, `LabelledPredictions`, `VariantPredictions`, `IngestStatus` and `Retention` on the
    transaction's connection."""

    _conn: Connection

    async def window(self, version: WatchedVersion, span: Span, segment: str = "") -> WindowCounts:
        rows = await self._conn.fetch(_PANES, version.id, segment, span.start_us, span.end_us)
        panes = [(r["start_us"], PackedPane(r["counts"], r["sums"], r["predictions"])) for r in rows]
        return sum_panes(version.layout, panes)

    async def quality(self, version_id: int, span: Span, window: WindowCounts, segment: str = "") -> Quality:
        found = quality(totals_of_window(window))
        if found.labelled == 0:
            return found
        row = await self._conn.fetchrow(_LABELLED, version_id, span.start_us, span.end_us, segment)
        return with_exact_auc(
            found, np.array(row["scores"] or [], np.float64), np.array(row["labels"] or [], np.float64)
        )

    async def variant_rows(
        self, rollout: str, release: str, role: Role, since_us: int, generation: int
    ) -> VariantRows:
        row = await self._conn.fetchrow(_VARIANT, rollout, release, int(role), since_us, generation)
        scores = np.array(row["scores"] or [], np.float64)
        sources = np.array(row["sources"] or [], np.int64)
        return VariantRows(
            ids=tuple(row["ids"] or ()),
            event_times=np.array(row["times"] or [], np.int64),
            scores=scores,
            labels=np.array(row["labels"] or [], np.float64),
            decisions=np.array(row["decisions"] or [], np.bool_),
            latencies_ms=np.array(row["latencies"] or [], np.float64),
            usable=usable_scores(scores, sources),
            failed=np.array(row["failed"] or [], np.bool_),
        )

    async def event_range(self, version_id: int, span: Span, segment: str) -> tuple[int | None, int | None]:
        row = await self._conn.fetchrow(_EVENT_RANGE, version_id, span.start_us, span.end_us, segment)
        return row[0], row[1]

    async def prune(self, keep_us: int) -> int:
        return int(await self._conn.fetchval(_PRUNE, keep_us))

    async def counts(self, project: str) -> IngestCounts:
        return IngestCounts(
            **{name: int(n) for name, n in (await self._conn.fetchrow(_STATUS, project)).items()}
        )

    async def reached(self, project: str) -> int | None:
        found: int | None = await self._conn.fetchval(_REACHED, project)
        return found
