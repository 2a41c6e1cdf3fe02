"""Counted windows and stored predictions in PostgreSQL. No read depends on the number of rows of its
range."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.ingest.batches import IngestCounts
from flywheel_monitor.performance.quality import EXACT_AUC_ROWS, Quality, quality, with_exact_auc
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.store.postgres.panes import extent, sum_of_panes
from flywheel_monitor.windows.blocks import MAX_BLOCKS
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.panes import rollup_widths
from flywheel_monitor.windows.span import Span

_SERVED = "SELECT id FROM variant WHERE model_version_id = $1 AND role <> 3"
# The same condition as `usable_scores`.
_LABELLED = """
SELECT array_agg(p.score) AS scores, array_agg(l.value) AS labels
FROM prediction p JOIN label l USING (model_id, prediction_id)
WHERE p.variant_id = ANY($1::integer[]) AND p.event_time >= $2 AND p.event_time < $3
  AND p.source IN (1, 2) AND abs(p.score) <= 1099511627776 AND ($4 = '' OR p.segment = $4)
  AND l.value IN (0, 1)
"""
_FIRST = """
SELECT min(event_time) FROM prediction WHERE variant_id = ANY($1::integer[])
    AND event_time >= $2 AND event_time < $3 AND ($4 = '' OR segment = $4)
"""
_LAST = _FIRST.replace("min", "max")
_PRUNE = """
WITH old AS (
    SELECT ctid FROM prediction WHERE arrived_at < $1 LIMIT 20000
), gone AS (DELETE FROM prediction WHERE ctid IN (SELECT ctid FROM old) RETURNING model_id, prediction_id),
labels AS (
    DELETE FROM label WHERE (model_id, prediction_id) IN (SELECT model_id, prediction_id FROM gone)
)
SELECT count(*) FROM gone
"""
_STATUS = """
SELECT coalesce(sum(predictions), 0) AS predictions, coalesce(sum(outcomes), 0) AS outcomes,
    coalesce(sum(orphans), 0) AS orphans, coalesce(sum(duplicates), 0) AS duplicates,
    coalesce(sum(late), 0) AS late
FROM ingest_count c JOIN model m ON m.id = c.model_id WHERE m.project = $1
"""
_REACHED = """
SELECT max(reached_us) FROM progress p JOIN model m ON m.id = p.model_id WHERE m.project = $1 AND NOT labels
"""


class PredictionRows:
    """`CountedWindows`, `LabelledPredictions`, `IngestStatus` and `Retention` on the transaction's
    connection."""

    _conn: Connection
    _pane_us: int

    async def window(self, version: WatchedVersion, span: Span, segment: str = "") -> WindowCounts:
        rollups = rollup_widths(self._pane_us) if version.rolled_up else ()
        variants = await self._served_variants(version.id)
        # Panes wider than a block of the window would hide how dependent its rows are.
        length = span.end_us - span.start_us
        widths = (self._pane_us, *(w for w in rollups if length >= w * MAX_BLOCKS))
        return await sum_of_panes(self._conn, variants, version.layout, span, segment, widths)

    async def quality(self, version_id: int, span: Span, window: WindowCounts, segment: str = "") -> Quality:
        found = quality(window)
        if found.auc is None or window.predictions > EXACT_AUC_ROWS:
            return found
        variants = await self._served_variants(version_id)
        row = await self._conn.fetchrow(_LABELLED, variants, span.start_us, span.end_us, segment)
        return with_exact_auc(
            found, np.array(row["scores"] or [], np.float64), np.array(row["labels"] or [], np.float64)
        )

    async def event_range(self, version_id: int, span: Span, segment: str) -> tuple[int | None, int | None]:
        variants = await self._served_variants(version_id)
        first, last = await extent(self._conn, variants, span, segment, self._pane_us)
        ends: list[int | None] = []
        for statement, pane in ((_FIRST, first), (_LAST, last)):
            if pane is None:
                return None, None
            exact = await self._conn.fetchval(statement, variants, pane, pane + self._pane_us, segment)
            ends.append(pane if exact is None else exact)
        return ends[0], ends[1]

    async def prune(self, arrived_before: datetime) -> int:
        return int(await self._conn.fetchval(_PRUNE, arrived_before))

    async def counts(self, project: str) -> IngestCounts:
        return IngestCounts(
            **{name: int(n) for name, n in (await self._conn.fetchrow(_STATUS, project)).items()}
        )

    async def reached(self, project: str) -> int | None:
        found: int | None = await self._conn.fetchval(_REACHED, project)
        return found

    async def _served_variants(self, version_id: int) -> list[int]:
        return [r["id"] for r in await self._conn.fetch(_SERVED, version_id)]
