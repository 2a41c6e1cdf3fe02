"""Metric points of runs on PostgreSQL, and the summaries of metrics that searches read."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.pool import Connection
from flywheel_job.outcome import MetricPoint
from flywheel_trainer.runs.metric_points import LoggedPoints
from flywheel_trainer.runs.run import RunName

_INSERT_POINTS = """
WITH given AS (
    SELECT * FROM unnest($2::text[], $3::bigint[], $4::float8[], $5::bigint[])
        WITH ORDINALITY AS g(key, step, value, time_us, position)
), first AS (
    SELECT DISTINCT ON (key, step) * FROM given ORDER BY key, step, position
), written AS (
    INSERT INTO metric_point AS p (run_id, key, step, value, time_us, attempt)
    SELECT $1, key, step, value, time_us, $6 FROM first
    ON CONFLICT (run_id, key, step) DO UPDATE
        SET value = excluded.value, time_us = excluded.time_us, attempt = excluded.attempt
        WHERE p.attempt < excluded.attempt
    RETURNING key, step, value
), kept AS (
    SELECT * FROM written
    UNION ALL
    SELECT p.key, p.step, p.value FROM metric_point p JOIN first USING (key, step)
    WHERE p.run_id = $1 AND p.attempt >= $6
), newest AS (
    INSERT INTO run_metric AS m (run_id, key, step, value, attempt, min_value, max_value)
    SELECT DISTINCT ON (key) $1, key, step, value, $6,
        coalesce(min(value) FILTER (WHERE value <> 'NaN') OVER every, 'NaN'),
        coalesce(max(value) FILTER (WHERE value <> 'NaN') OVER every, 'NaN')
    FROM written WINDOW every AS (PARTITION BY key) ORDER BY key, step DESC
    -- The newer values of last and attempt win; NaN sorts after all numbers, so least() leaves it out.
    ON CONFLICT (run_id, key) DO UPDATE SET
        step = CASE WHEN (m.attempt, m.step) < (excluded.attempt, excluded.step)
            THEN excluded.step ELSE m.step END,
        value = CASE WHEN (m.attempt, m.step) < (excluded.attempt, excluded.step)
            THEN excluded.value ELSE m.value END,
        attempt = greatest(m.attempt, excluded.attempt),
        min_value = least(m.min_value, excluded.min_value),
        max_value = coalesce(greatest(nullif(m.max_value, 'NaN'), nullif(excluded.max_value, 'NaN')), 'NaN')
)
SELECT (SELECT count(*) FROM written) AS stored, (
    SELECT count(*) FROM given g
    WHERE EXISTS (SELECT 1 FROM kept k WHERE (k.key, k.step) = (g.key, g.step) AND k.value <> g.value)
) AS ignored
"""
_DROP_REPLACED_POINTS = """
DELETE FROM metric_point p WHERE run_id = $1 AND attempt < $2 AND step >= (
    SELECT min(step) FROM metric_point n WHERE n.run_id = $1 AND n.attempt = $2 AND n.key = p.key
)
"""
_POINTS = """
SELECT key, step, value, time_us FROM metric_point
WHERE run_id = $1 AND ($2 = '' OR key = $2) AND (key, step) > ($3, $4) ORDER BY key, step LIMIT $5
"""
_SUMMARIZE = """
INSERT INTO run_metric AS m (run_id, key, step, value, attempt, min_value, max_value)
SELECT DISTINCT ON (key) $1, key, step, value, attempt,
    coalesce(min(value) FILTER (WHERE value <> 'NaN') OVER every, 'NaN'),
    coalesce(max(value) FILTER (WHERE value <> 'NaN') OVER every, 'NaN')
FROM metric_point WHERE run_id = $1
WINDOW every AS (PARTITION BY key) ORDER BY key, attempt DESC, step DESC
"""


async def insert_points(
    conn: Connection, run_id: str, points: Sequence[MetricPoint], attempt: int
) -> LoggedPoints:
    """Store points of an attempt (0: none) in the caller's transaction. The first value of a (metric, step)
    is kept, unless it is of an earlier attempt."""
    if not points:
        return LoggedPoints(0, 0)
    row = await conn.fetchrow(
        _INSERT_POINTS,
        run_id,
        [p.key for p in points],
        [p.step for p in points],
        [p.value for p in points],
        [p.time_us for p in points],
        attempt,
    )
    return LoggedPoints(row["stored"], row["ignored"])


async def drop_replaced_points(conn: Connection, run_id: str, attempt: int) -> None:
    """Delete points of earlier attempts from the step on at which this attempt began, by metric."""
    await conn.execute(_DROP_REPLACED_POINTS, run_id, attempt)


async def summarize_metrics(conn: Connection, run_id: str) -> None:
    """Compute last values and extremes anew from the points, in the caller's transaction."""
    await conn.execute("DELETE FROM run_metric WHERE run_id = $1", run_id)
    await conn.execute(_SUMMARIZE, run_id)


async def points_of(conn: Connection, name: RunName, key: str, size: int, token: str) -> Page[MetricPoint]:
    """A page of the points of a metric, or of all metrics if `key` is empty, by metric and step."""
    query = f"{name}?{key}"
    after = decode_token(token, query=query) or ["", -(2**63)]
    rows = await conn.fetch(_POINTS, name.run, key, after[0], after[1], size + 1)
    return cut([MetricPoint(*row) for row in rows], size, lambda p: (p.key, p.step), query=query)
