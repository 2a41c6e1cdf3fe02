"""The evidence of a rollout in PostgreSQL: panes of its variants, and the rows of the first, partial pane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.comparison.ports import VariantName
from flywheel_monitor.ingest.answers import Answer, Known, labelled_rows, outputs_of, paired_rows
from flywheel_monitor.ingest.batches import Role
from flywheel_monitor.store.postgres.answers import PAIRS_BETWEEN, answer_of, pair_of
from flywheel_monitor.store.postgres.pane_cache import PaneCache, PaneSource
from flywheel_monitor.store.postgres.pane_reads import sum_of_panes
from flywheel_monitor.store.postgres.variants import Variant
from flywheel_monitor.store.postgres.versions import VersionCache
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.rows import Rows
from flywheel_monitor.windows.span import ALL_TIME, Span
from flywheel_monitor.windows.support import SUPPORT, oldest_skipped

_VARIANT = """
SELECT t.id, v.minutes_from_us FROM variant t JOIN model_version v ON v.id = t.model_version_id
WHERE t.rollout = $1 AND t.release = $2 AND (t.role = $3 OR $3 = 0 AND t.role <> 3)
    AND ($4::bigint = 0 OR t.generation = $4) ORDER BY t.id
"""
_ROWS = """
SELECT p.event_time, p.segment, p.score, p.source, p.decision, p.outputs, p.latency_ms, p.cost, p.failed,
    l.value, l.class_name
FROM prediction p LEFT JOIN label l USING (model_id, prediction_id)
WHERE p.variant_id = $1 AND p.event_time >= $2 AND p.event_time < $3
"""
_ORDERED = """
SELECT event_time FROM unnest($1::integer[]) AS v (id), LATERAL (
    SELECT event_time FROM prediction WHERE variant_id = v.id AND event_time >= $2
    ORDER BY event_time {0} LIMIT $3 + 1
) found ORDER BY event_time {0} OFFSET $3 LIMIT 1
"""
_OLDEST, _NEWEST = _ORDERED.format("ASC"), _ORDERED.format("DESC")


class ComparisonRows:
    """`VariantCounts` on the transaction's connection."""

    _conn: Connection
    _versions: VersionCache
    _pane_us: int
    _pane_cache: PaneCache
    _variants_of: dict[VariantName, list[tuple[Variant, int]]]

    async def variant_window(self, name: VariantName, since_us: int) -> WindowCounts:
        first_pane = -(-since_us // self._pane_us) * self._pane_us
        total: WindowCounts | None = None
        for variant, minutes_from in await self._variants(name):
            layout, span = variant.version.layout, Span(first_pane, ALL_TIME.end_us)
            parts = replace(variant.version, minutes_from_us=minutes_from).kept(self._pane_us).pieces(span)
            source = PaneSource(variant_id=variant.id)
            found = await sum_of_panes(self._conn, self._pane_cache, source, layout, parts, "")
            if since_us < first_pane:
                found = found.plus(await self._rows_between(variant, Span(since_us, first_pane)))
            total = total.plus(found) if total and total.layout is layout else found
        return total or sum_panes(Layout.of(()), ())

    async def covered(
        self, names: Sequence[VariantName], since_us: int, total: int
    ) -> tuple[int, int] | None:
        ids = [v.id for name in names for v, _ in await self._variants(name)]
        first = await self._conn.fetchval(_OLDEST, ids, since_us, oldest_skipped(total))
        last = await self._conn.fetchval(_NEWEST, ids, since_us, SUPPORT - 1)
        return None if first is None or last is None or first > last else (first, last)

    async def _variants(self, name: VariantName) -> list[tuple[Variant, int]]:
        """Each with the start of the panes that are kept of it. Looked up once: all parts of a comparison are
        about the same variants."""
        if name not in self._variants_of:
            key = name.rollout, name.release, int(name.role), name.generation
            self._variants_of[name] = [
                (await self._versions.of_variant(r["id"]), r["minutes_from_us"])
                for r in await self._conn.fetch(_VARIANT, *key)
            ]
        return self._variants_of[name]

    async def _rows_between(self, variant: Variant, span: Span) -> WindowCounts:
        """The rows of less than one pane, counted as panes are."""
        layout, output = variant.version.layout, variant.version.output
        found = await self._conn.fetch(_ROWS, variant.id, span.start_us, span.end_us)
        answers = [answer_of(r) for r in found]
        panes = PaneAccumulator(layout, self._pane_us)
        panes.add_rows(
            Rows(
                event_times=np.array([a.event_time for a in answers], np.int64),
                scores=np.array([a.score for a in answers], np.float64),
                outputs=outputs_of(output, answers),
                decisions=np.array([a.decision for a in answers], np.bool_),
                sources=np.array([a.source for a in answers], np.int64),
                latencies_ms=np.array([r["latency_ms"] for r in found], np.float64),
                costs=np.array([np.nan if r["cost"] is None else r["cost"] for r in found], np.float64),
                failed=np.array([r["failed"] for r in found], np.bool_),
                segments=("",) * len(found),
                features={},
            )
        )
        labelled: list[tuple[Answer, Known]] = [
            (a, Known(r["value"], r["class_name"]))
            for a, r in zip(answers, found, strict=True)
            if r["value"] is not None
        ]
        panes.add_labels(labelled_rows(output, labelled))
        if variant.key.role == Role.SHADOW:
            pairs = await self._conn.fetch(PAIRS_BETWEEN, variant.id, span.start_us, span.end_us)
            panes.add_pairs(paired_rows(output, [pair_of(r) for r in pairs]))
        counted = panes.merge({}) if panes else {}
        return sum_panes(layout, [(k.start_us, pane) for k, pane in counted.items() if not k.segment])
