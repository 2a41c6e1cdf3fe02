"""Counted windows and stored predictions in PostgreSQL. No read depends on the number of rows of its
range."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.ingest.batches import IngestCounts
from flywheel_monitor.performance.quality import EXACT_AUC_ROWS, Quality, quality, with_exact_auc
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.store.postgres.packs import Pack, slice_us
from flywheel_monitor.store.postgres.pane_cache import PaneCache, PaneSource
from flywheel_monitor.store.postgres.pane_reads import sum_of_panes
from flywheel_monitor.store.postgres.stored_predictions import between
from flywheel_monitor.windows.blocks import MAX_BLOCKS
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.pieces import rollup_widths
from flywheel_monitor.windows.rows import usable_scores
from flywheel_monitor.windows.span import Span

_SERVED = "SELECT id FROM variant WHERE model_version_id = $1 AND role <> 3"
_LABELS = """
SELECT prediction_id, value FROM label
WHERE model_id = (SELECT model_id FROM model_version WHERE id = $1) AND prediction_id = ANY($2::text[])
    AND value IN (0, 1)
"""
# The oldest row is in the slice of the pack that ends first. Panes consist of whole slices.
_FIRST_IN = """
SELECT min(p.first_us) FROM (
    SELECT min(found.last_us) AS last_us FROM unnest({variants}) AS v (id), LATERAL (
        SELECT last_us FROM prediction_pack WHERE variant_id = v.id AND last_us >= {start} AND last_us < {end}
        ORDER BY last_us LIMIT 1
    ) found
) e JOIN prediction_pack p ON p.variant_id = ANY({variants}) AND p.last_us >= {start}
    AND p.last_us < (e.last_us / {width} + 1) * {width}
"""
_LAST_IN = """
SELECT max(found.last_us) FROM unnest({variants}) AS v (id), LATERAL (
    SELECT last_us FROM prediction_pack WHERE variant_id = v.id AND last_us >= {start} AND last_us < {end}
    ORDER BY last_us DESC LIMIT 1
) found
"""
_FIRST = _FIRST_IN.format(variants="$1::integer[]", start="$2", end="$3", width="$4")
_LAST = _LAST_IN.format(variants="$1::integer[]", start="$2", end="$3")
_VARIANTS = "ARRAY(SELECT id FROM served)"
_FIRST_OF_PANE = _FIRST_IN.format(variants=_VARIANTS, start="first.start_us", end="first.end_us", width="$6")
_LAST_OF_PANE = _LAST_IN.format(variants=_VARIANTS, start="last.start_us", end="last.end_us")
# The first and the last pane of the pieces that has predictions of the segment, and the first and the last
# event time in them, of any segment.
_RANGE = f"""
WITH served AS MATERIALIZED (
    {_SERVED}
), ends AS MATERIALIZED (
    SELECT k.width_us, found.start_us
    FROM unnest($3::bigint[], $4::bigint[], $5::bigint[]) AS k (width_us, start_us, end_us), served v,
    LATERAL (
        (SELECT p.start_us FROM pane p WHERE p.variant_id = v.id AND p.segment = $2
            AND p.width_us = k.width_us AND p.start_us >= k.start_us AND p.start_us < k.end_us
            AND p.predictions > 0 ORDER BY p.start_us LIMIT 1)
        UNION ALL
        (SELECT p.start_us FROM pane p WHERE p.variant_id = v.id AND p.segment = $2
            AND p.width_us = k.width_us AND p.start_us >= k.start_us AND p.start_us < k.end_us
            AND p.predictions > 0 ORDER BY p.start_us DESC LIMIT 1)
    ) found
), first AS MATERIALIZED (
    SELECT start_us, start_us + width_us AS end_us FROM ends ORDER BY start_us, width_us LIMIT 1
), last AS MATERIALIZED (
    SELECT start_us, start_us + width_us AS end_us FROM ends ORDER BY start_us DESC, width_us DESC LIMIT 1
)
SELECT {_VARIANTS} AS variants, first.start_us AS first_start, first.end_us AS first_end,
    last.start_us AS last_start, last.end_us AS last_end,
    ({_FIRST_OF_PANE}) AS first_us, ({_LAST_OF_PANE}) AS last_us
FROM first, last
"""
# One index lookup per variant and segment, not a scan of all panes.
_SEGMENTS = """
WITH RECURSIVE found (segment) AS (
    SELECT ''
    UNION ALL
    SELECT (
        SELECT min(after.segment) FROM unnest($1::integer[]) AS v (id), LATERAL (
            SELECT p.segment FROM pane p WHERE p.variant_id = v.id AND p.segment > found.segment
            ORDER BY p.segment LIMIT 1
        ) after
    ) FROM found WHERE found.segment IS NOT NULL
)
SELECT segment FROM found WHERE segment <> '' LIMIT $2
"""
_OLD = "SELECT id, rows FROM prediction_pack WHERE arrived_at < $1 LIMIT 2000"
_PRUNE = """
WITH gone AS (DELETE FROM prediction_pack WHERE id = ANY($1::bigint[]) RETURNING *), forgotten AS (
    DELETE FROM prediction_bucket b USING (
        SELECT id, model_id, unnest(buckets) AS bucket FROM gone
    ) g WHERE b.model_id = g.model_id AND b.bucket = g.bucket AND b.pack = g.id
)
SELECT model_id, ids FROM gone
"""
_FORGET_LABELS = "DELETE FROM label WHERE model_id = $1 AND prediction_id = ANY($2::text[])"
_COMPACT = """
WITH old AS (
    SELECT p.ctid FROM pane p JOIN variant t ON t.id = p.variant_id JOIN model_version v ON v.id =
    t.model_version_id WHERE p.width_us = $1 AND v.rolled_up AND p.start_us < v.minutes_from_us AND
    v.minutes_from_us <> 0 LIMIT 5000
), gone AS (DELETE FROM pane WHERE ctid IN (SELECT ctid FROM old) RETURNING 1)
SELECT count(*) FROM gone
"""
_MINUTES_FROM = """
UPDATE model_version v SET minutes_from_us = (w.reached - $1) / $2 * $2 FROM (
    SELECT model_id, max(reached_us) AS reached FROM progress WHERE NOT labels GROUP BY model_id
) w WHERE w.model_id = v.model_id AND v.rolled_up AND (w.reached - $1) / $2 * $2 > v.minutes_from_us
"""
_STATUS = """
SELECT coalesce(sum(predictions), 0) AS predictions, coalesce(sum(outcomes), 0) AS outcomes,
    coalesce(sum(orphans), 0) AS orphans, coalesce(sum(duplicates), 0) AS duplicates,
    coalesce(sum(late), 0) AS late
FROM ingest_count c JOIN model m ON m.id = c.model_id WHERE m.project = $1
"""
_LATE_BY_MODEL = """
SELECT m.name, sum(c.late) AS late FROM ingest_count c JOIN model m ON m.id = c.model_id
WHERE m.project = $1 AND c.late > 0 GROUP BY m.name ORDER BY late DESC, m.name LIMIT $2
"""
_REACHED = """
SELECT max(reached_us) FROM progress p JOIN model m ON m.id = p.model_id WHERE m.project = $1 AND NOT labels
"""


PRUNED_ROWS = 20_000
"""Rows after which a transaction deletes no more packs."""


class PredictionRows:
    """`CountedWindows`, `LabelledPredictions`, `IngestStatus` and `Retention` on the transaction's
    connection."""

    _conn: Connection
    _pane_us: int
    _pane_cache: PaneCache

    async def window(self, version: WatchedVersion, span: Span, segment: str = "") -> WindowCounts:
        # Panes wider than a block of the window would hide how dependent its rows are.
        kept = version.kept(self._pane_us)
        pieces = kept.pieces(span, MAX_BLOCKS)
        source = PaneSource(version_id=version.id)
        return await sum_of_panes(
            self._conn, self._pane_cache, source, version.layout, pieces, segment, kept.widest_us
        )

    async def quality(self, version_id: int, span: Span, window: WindowCounts, segment: str = "") -> Quality:
        found = quality(window)
        if found.auc is None or window.predictions > EXACT_AUC_ROWS:
            return found
        variants = await self._served_variants(version_id)
        scores: dict[str, float] = {}
        for pack in await between(self._conn, variants, span, slice_us(self._pane_us)):
            usable = usable_scores(pack.scores, pack.sources)
            for i in pack.rows_in(span):
                if usable[i] and segment in ("", pack.segments[i]):
                    scores[pack.ids[i]] = float(pack.scores[i])
        labels = await self._conn.fetch(_LABELS, version_id, list(scores))
        return with_exact_auc(
            found,
            np.array([scores[r["prediction_id"]] for r in labels], np.float64),
            np.array([r["value"] for r in labels], np.float64),
        )

    async def event_range(
        self, version: WatchedVersion, span: Span, segment: str
    ) -> tuple[int | None, int | None]:
        parts = version.kept(self._pane_us).pieces(span, least_panes=2**62)
        columns = (
            [p.width_us for p in parts],
            [p.span.start_us for p in parts],
            [p.span.end_us for p in parts],
        )
        found = await self._conn.fetchrow(_RANGE, version.id, segment, *columns, slice_us(self._pane_us))
        if found is None:
            return None, None
        first, last = found["first_us"], found["last_us"]
        if segment:
            first = await self._first(found["variants"], found["first_start"], found["first_end"], segment)
            last = await self._last(found["variants"], found["last_start"], found["last_end"], segment)
        # Where the rows of a pane are deleted, its start.
        return found["first_start"] if first is None else first, found["last_start"] if last is None else last

    async def segments(self, version: WatchedVersion, limit: int) -> list[str]:
        rows = await self._conn.fetch(_SEGMENTS, await self._served_variants(version.id), limit)
        return [row["segment"] for row in rows]

    async def _first(self, variants: list[int], start: int, end: int, segment: str) -> int | None:
        """The first event time of a segment in a pane, None if its rows are deleted."""
        width = slice_us(self._pane_us)
        while (found := await self._conn.fetchval(_FIRST, variants, start, end, width)) is not None:
            start = int(found) // width * width + width
            if times := await self._segment_times(variants, Span(start - width, start), segment):
                return min(times)
        return None

    async def _last(self, variants: list[int], start: int, end: int, segment: str) -> int | None:
        """The last event time of a segment in a pane, None if its rows are deleted."""
        width = slice_us(self._pane_us)
        while (found := await self._conn.fetchval(_LAST, variants, start, end)) is not None:
            end = int(found) // width * width
            if times := await self._segment_times(variants, Span(end, end + width), segment):
                return max(times)
        return None

    async def _segment_times(self, variants: list[int], span: Span, segment: str) -> list[int]:
        """The event times of the segment in a slice."""
        packs = await between(self._conn, variants, span, slice_us(self._pane_us))
        return [int(p.event_times[i]) for p in packs for i, s in enumerate(p.segments) if s == segment]

    async def prune(self, arrived_before: datetime) -> int:
        packs, rows = [], 0
        for r in await self._conn.fetch(_OLD, arrived_before):
            if rows >= PRUNED_ROWS:
                break
            packs.append(r["id"])
            rows += r["rows"]
        ids: dict[int, list[str]] = {}
        for r in await self._conn.fetch(_PRUNE, packs):
            ids.setdefault(r["model_id"], []).extend(Pack(r).ids)
        for model_id, gone in ids.items():
            await self._conn.execute(_FORGET_LABELS, model_id, gone)
        return sum(map(len, ids.values()))

    async def compact(self, keep_us: int) -> int:
        rollups = rollup_widths(self._pane_us)
        if not rollups:
            return 0
        # What an earlier pass has announced: no reader still expects these panes.
        deleted = int(await self._conn.fetchval(_COMPACT, self._pane_us))
        if not deleted:
            await self._conn.execute(_MINUTES_FROM, keep_us, rollups[-1])
        return deleted

    async def counts(self, project: str) -> IngestCounts:
        return IngestCounts(
            **{name: int(n) for name, n in (await self._conn.fetchrow(_STATUS, project)).items()}
        )

    async def late_by_model(self, project: str, limit: int) -> list[tuple[str, int]]:
        rows = await self._conn.fetch(_LATE_BY_MODEL, project, limit)
        return [(r["name"], int(r["late"])) for r in rows]

    async def reached(self, project: str) -> int | None:
        found: int | None = await self._conn.fetchval(_REACHED, project)
        return found

    async def _served_variants(self, version_id: int) -> list[int]:
        return [r["id"] for r in await self._conn.fetch(_SERVED, version_id)]
