"""The evidence of a rollout in PostgreSQL: panes of its variants, and the rows of the first, partial pane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.comparison.ports import VariantName
from flywheel_monitor.ingest.answers import labelled_rows, outputs_of, paired_rows
from flywheel_monitor.ingest.batches import Role
from flywheel_monitor.store.postgres.home import ANYWHERE
from flywheel_monitor.store.postgres.packs import slice_us
from flywheel_monitor.store.postgres.pane_cache import PaneCache, PaneSource
from flywheel_monitor.store.postgres.pane_reads import sum_of_panes
from flywheel_monitor.store.postgres.stored_predictions import (
    between,
    find,
    labels_of,
    nth_oldest,
    pairs_of,
)
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
_NEWEST = """
SELECT time FROM unnest($1::integer[]) AS v (id), LATERAL (
    SELECT newest_us FROM prediction_pack WHERE variant_id = v.id AND last_us >= $2
    ORDER BY last_us DESC LIMIT $3
) p, unnest(p.newest_us) AS time
WHERE time >= $2 ORDER BY time DESC OFFSET $3 - 1 LIMIT 1
"""


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
            kept = replace(variant.version, minutes_from_us=minutes_from).kept(self._pane_us)
            source = PaneSource(variant_id=variant.id)
            found = await sum_of_panes(
                self._conn, self._pane_cache, source, layout, kept.pieces(span), "", kept.widest_us
            )
            if since_us < first_pane:
                found = found.plus(await self._rows_between(variant, Span(since_us, first_pane)))
            total = total.plus(found) if total and total.layout is layout else found
        return total or sum_panes(Layout.of(()), ())

    async def covered(
        self, names: Sequence[VariantName], since_us: int, total: int
    ) -> tuple[int, int] | None:
        ids = [v.id for name in names for v, _ in await self._variants(name)]
        n = oldest_skipped(total) + 1
        first = await nth_oldest(self._conn, ids, since_us, n, slice_us(self._pane_us))
        last = await self._conn.fetchval(_NEWEST, ids, since_us, SUPPORT)
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
        packs = await between(self._conn, [variant.id], span, slice_us(self._pane_us))
        found = [pack.prediction(i) for pack in packs for i in pack.rows_in(span)]
        answers = [s.answer for s in found]
        panes = PaneAccumulator(layout, self._pane_us)
        panes.add_rows(
            Rows(
                event_times=np.array([a.event_time for a in answers], np.int64),
                scores=np.array([a.score for a in answers], np.float64),
                outputs=outputs_of(output, answers),
                decisions=np.array([a.decision for a in answers], np.bool_),
                sources=np.array([a.source for a in answers], np.int64),
                latencies_ms=np.array([s.latency_ms for s in found], np.float64),
                costs=np.array([s.cost for s in found], np.float64),
                failed=np.array([s.failed for s in found], np.bool_),
                segments=("",) * len(found),
                features={},
            )
        )
        model_id = variant.version.model_id
        labels = await labels_of(self._conn, model_id, [s.id for s in found]) if found else {}
        labelled = [(a, labels[s.id]) for a, s in zip(answers, found, strict=True) if s.id in labels]
        panes.add_labels(labelled_rows(output, labelled))
        if variant.key.role == Role.SHADOW and found:
            champions = await find(self._conn, ANYWHERE, model_id, {s.id for s in found})
            both = [*found, *(s for s in champions if not s.shadow)]
            pairs = await pairs_of(self._versions, both, labels)
            panes.add_pairs(paired_rows(output, [pair for _, _, pair in pairs]))
        counted = panes.merge({}) if panes else {}
        return sum_panes(layout, [(k.start_us, pane) for k, pane in counted.items() if not k.segment])
