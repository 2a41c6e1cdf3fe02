"""Stored answers, read for comparisons and ranges, and forgotten after their time."""

from __future__ import annotations

import numpy as np

from flywheel_common.postgres import Pool, connection
from flywheel_monitor.batches import Role
from flywheel_monitor.comparison import VariantRows
from flywheel_monitor.layout import usable_scores
from flywheel_monitor.windows import Span

_VARIANT = """
SELECT array_agg(p.prediction_id) AS ids, array_agg(p.event_time) AS times, array_agg(p.score) AS scores,
    array_agg(coalesce(l.value, 'NaN')) AS labels, array_agg(p.decision) AS decisions, array_agg(p.latency_ms) AS latencies,
    array_agg(p.source) AS sources, array_agg(p.failed) AS failed
FROM variant t JOIN prediction p ON p.variant_id = t.id LEFT JOIN label l USING (prediction_id)
WHERE t.rollout = $1 AND t.release = $2 AND t.role = $3 AND p.event_time >= $4
"""
_EVENT_RANGE = """
SELECT min(p.event_time), max(p.event_time) FROM prediction p JOIN variant t ON t.id = p.variant_id
WHERE t.model_version_id = $1 AND NOT p.shadow AND p.event_time >= $2 AND p.event_time < $3 AND ($4 = '' OR p.segment = $4)
"""
_PRUNE = """
WITH old AS (
    SELECT p.ctid FROM prediction p JOIN variant t ON t.id = p.variant_id JOIN model_version v ON v.id = t.model_version_id
    JOIN (SELECT model_id, max(newest_us) AS newest FROM progress GROUP BY model_id) w USING (model_id)
    WHERE p.event_time < w.newest - $1 LIMIT 20000
), gone AS (DELETE FROM prediction WHERE ctid IN (SELECT ctid FROM old) RETURNING prediction_id),
labels AS (DELETE FROM label WHERE prediction_id IN (SELECT prediction_id FROM gone))
SELECT count(*) FROM gone
"""
_STATUS = """
SELECT coalesce(sum(predictions), 0) AS predictions, coalesce(sum(outcomes), 0) AS outcomes,
    coalesce(sum(orphans), 0) AS orphans, coalesce(sum(duplicates), 0) AS duplicates
FROM ingest_count c JOIN model m ON m.id = c.model_id WHERE m.project = $1
"""
_WATERMARK = "SELECT max(newest_us) FROM progress p JOIN model m ON m.id = p.model_id WHERE m.project = $1"


class PredictionRows:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def variant(self, rollout: str, release: str, role: Role, since_us: int) -> VariantRows:
        """The answers of one variant of a rollout with event time >= `since_us`, with the labels that have come."""
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_VARIANT, rollout, release, int(role), since_us)
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
        """Event time of the first and last served answer that is still kept."""
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_EVENT_RANGE, version_id, span.start_us, span.end_us, segment)
        return row[0], row[1]

    async def prune(self, keep_us: int) -> int:
        """Forgets some answers (and their labels) more than `keep_us` of event time behind their model's newest; returns
        how many. Their counts stay."""
        async with connection(self._pool) as conn:
            return int(await conn.fetchval(_PRUNE, keep_us))

    async def counts(self, project: str) -> dict[str, int]:
        """predictions, outcomes, orphans and duplicates of a project."""
        async with connection(self._pool) as conn:
            return {key: int(value) for key, value in (await conn.fetchrow(_STATUS, project)).items()}

    async def newest(self, project: str) -> int | None:
        """Newest event time processed, microseconds."""
        async with connection(self._pool) as conn:
            found: int | None = await conn.fetchval(_WATERMARK, project)
        return found
