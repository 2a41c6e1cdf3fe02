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
    ends,
    find,
    labels_of,
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

_VARIANTS = """
SELECT k.at, t.id, v.minutes_from_us
FROM unnest($1::text[], $2::text[], $3::integer[], $4::bigint[]) WITH ORDINALITY
    AS k (rollout, release, role, generation, at)
JOIN variant t ON t.rollout = k.rollout AND t.release = k.release
    AND (t.role = k.role OR k.role = 0 AND t.role <> 3) AND (k.generation = 0 OR t.generation = k.generation)
JOIN model_version v ON v.id = t.model_version_id
ORDER BY t.id
"""


class ComparisonRows:
    """`VariantCounts` on the transaction's connection."""

    _conn: Connection
    _versions: VersionCache
    _pane_us: int
    _pane_cache: PaneCache
    _variants_of: dict[VariantName, list[tuple[Variant, int]]]

    async def variant_windows(self, names: Sequence[VariantName], since_us: int) -> list[WindowCounts]:
        await self._look_up(names)
        return [await self._window(name, since_us) for name in names]

    async def _window(self, name: VariantName, since_us: int) -> WindowCounts:
        first_pane = -(-since_us // self._pane_us) * self._pane_us
        total: WindowCounts | None = None
        for variant, minutes_from in self._variants_of[name]:
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
        await self._look_up(names)
        ids = [v.id for name in names for v, _ in self._variants_of[name]]
        n = oldest_skipped(total) + 1
        first, last = await ends(self._conn, ids, since_us, (n, SUPPORT), slice_us(self._pane_us))
        return None if first is None or last is None or first > last else (first, last)

    async def _look_up(self, names: Sequence[VariantName]) -> None:
        """The variants of each name, with the start of the panes that are kept of it. Looked up once: all
        parts of a comparison are about the same variants."""
        new = [name for name in names if name not in self._variants_of]
        if not new:
            return
        keys = [(name.rollout, name.release, int(name.role), name.generation) for name in new]
        self._variants_of.update({name: [] for name in new})
        for r in await self._conn.fetch(_VARIANTS, *map(list, zip(*keys, strict=True))):
            variant = await self._versions.of_variant(r["id"])
            self._variants_of[new[r["at"] - 1]].append((variant, r["minutes_from_us"]))

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
