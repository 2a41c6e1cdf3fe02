"""Panes: counts per (variant, segment, slice of event time), built from batches and added to stored ones.

A pane is a slice of event time that counts are kept for. What is added to a pane is added to the hour and the
day that contain it in the same transaction, so that a long window is the sum of few rows. A pane is stored
sparse: the indices and values of the counts that are not zero, and all sums. One row of traffic costs a few
bytes per feature; a full pane of 20 features with 128 bins stays below 32 KiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_common.signature import OutputKind
from flywheel_monitor.windows.blocks import block_of
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.histograms import calibration_bins, latency_bins
from flywheel_monitor.windows.layout import SOURCES, Extra, Layout, Sums
from flywheel_monitor.windows.losses import loss_terms
from flywheel_monitor.windows.output import CLASS_BINS
from flywheel_monitor.windows.packing import pack, pack_sums, unpack, unpack_sums, version_of
from flywheel_monitor.windows.rows import LabelledRows, PairedRows, Rows, Source, usable_scores
from flywheel_monitor.windows.sums import LIMBS, carried, limbs_of

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


def rollup_widths(pane_us: int) -> tuple[int, ...]:
    """The widths that panes of this width are added up to: hours and days, as far as they are whole panes."""
    return tuple(w for w in (HOUR_US, DAY_US) if w > pane_us and w % pane_us == 0)


class PaneKey(NamedTuple):
    """Identifies a pane of a variant: its segment ("" is all), width and start in microseconds."""

    segment: str
    width_us: int
    start_us: int


class PackedPane(NamedTuple):
    """A pane as it is stored."""

    counts: bytes
    sums: bytes
    predictions: int


class PaneAccumulator:
    """Collects what one transaction adds to the panes of one variant and one partition."""

    def __init__(self, layout: Layout, pane_us: int, rollups: Sequence[int] = ()) -> None:
        """`rollups`: widths that are kept besides the panes."""
        self._layout = layout
        self._pane_us = pane_us
        self._rollups = rollups
        self._groups: dict[PaneKey, int] = {}
        self._keys: list[Ints] = []
        self._weights: list[Ints] = []
        self._sum_groups: list[Ints] = []
        self._sum_columns: list[Ints] = []
        self._sum_limbs: list[int] = []
        self._sum_values: list[Ints] = []
        self._rows: list[Ints] = []

    def __bool__(self) -> bool:
        return bool(self._groups)

    def touched(self) -> list[PaneKey]:
        """Keys of the panes that change, and of the hours and days that contain them."""
        return list(
            dict.fromkeys(self._within(k, w) for w in (self._pane_us, *self._rollups) for k in self._groups)
        )

    def add_rows(self, rows: Rows) -> None:
        """Count n new predictions, in the segment "" (all) and in their named segment. Features count only
        where the model was called (source MODEL), so that fallbacks do not look like drift."""
        n = len(rows.event_times)
        if n == 0:
            return
        layout = self._layout
        usable = usable_scores(rows.scores, rows.sources)
        columns: list[tuple[Ints, Mask | None]] = []
        by_model = rows.sources == Source.MODEL
        for bins in layout.features:
            values, valid = rows.features.get(bins.name, (None, np.zeros(n, np.bool_)))
            columns.append((layout.offsets[bins.name] + bins.assign(values, valid, n), by_model))
        scores = np.where(usable, rows.scores, 0.0)
        answered = (rows.sources == Source.MODEL) | (rows.sources == Source.CACHED)
        costed = np.isfinite(rows.costs)
        columns.append((layout.scores + layout.output.score_bins(scores), usable))
        columns.append((layout.latencies + latency_bins(rows.latencies_ms), None))
        columns.append((layout.sources + np.clip(rows.sources, 0, SOURCES - 1), None))
        columns.append((np.full(n, layout.failures), rows.failed))
        for which, mask in (
            (Extra.UNUSABLE, answered & ~usable),
            (Extra.DECISIONS, rows.decisions),
            (Extra.COSTED, costed),
        ):
            columns.append((np.full(n, layout.extras + which), mask))
        columns += self._class_columns(rows, usable)
        sums: list[tuple[int, Floats]] = []
        for bins in layout.features:
            if bins.numeric and bins.name in rows.features:
                z = bins.standardized(*rows.features[bins.name], n)
                sums.append((layout.numeric[bins.name], np.where(by_model, z, 0.0)))
                raw = np.where(by_model, bins.standardized(*rows.features[bins.name], n, clip=False), 0.0)
                at = layout.moments + 2 * layout.numeric[bins.name]
                sums += [(at, raw), (at + 1, raw**2)]
        base = layout.common_sums
        sums.append((base + Sums.SCORE, scores))
        sums.append((base + Sums.SCORE_SQUARED, scores * scores))
        sums.append((base + Sums.COST, np.where(costed, rows.costs, 0.0)))
        for groups, keep in self._assign(rows.event_times, rows.segments):
            for indices, mask in columns:
                self._count(groups, indices, _both(mask, keep))
            for column, values in sums:
                self._sum(groups, column, values, keep)
            self._rows.append(groups if keep is None else groups[keep])

    def _class_columns(self, rows: Rows, usable: Mask) -> list[tuple[Ints, Mask | None]]:
        """Predicted classes and the bins of the probabilities of a MULTICLASS output."""
        layout, output = self._layout, self._layout.output
        if output.kind is not OutputKind.MULTICLASS:
            return []
        p = np.where(usable[:, None], rows.outputs, 0.0)
        columns: list[tuple[Ints, Mask | None]] = [
            (layout.predicted + output.counted_class(p.argmax(axis=1)), usable)
        ]
        for c in range(min(output.width, output.classes)):
            bins = np.clip(np.floor(p[:, c] * CLASS_BINS), 0, CLASS_BINS - 1).astype(np.int64)
            columns.append((layout.class_bins + c * CLASS_BINS + bins, usable))
        return columns

    def add_labels(self, rows: LabelledRows) -> None:
        """Count labels in the panes of their predictions."""
        if len(rows.event_times) == 0:
            return
        layout, base = self._layout, self._layout.common_sums
        terms = loss_terms(layout.output, rows.scores, rows.outputs, rows.labels)
        indices = np.where(terms.positive, layout.positives, layout.negatives) + terms.bins
        sums: list[tuple[int | Ints, Floats]] = [
            (base + Sums.LABEL, terms.label),
            (base + Sums.LABEL_SQUARED, terms.label**2),
            (base + Sums.LOSS, terms.loss),
            (base + Sums.LOSS_SQUARED, terms.loss**2),
            (base + Sums.BRIER, terms.brier),
            (base + Sums.ABSOLUTE_ERROR, terms.absolute_error),
            (base + Sums.LABELLED_SCORE, rows.scores),
        ]
        if layout.output.unit_interval:
            sums.append((base + Sums.CALIBRATION + calibration_bins(terms.bins), rows.scores))
        confusion: Ints | None = None
        if layout.output.kind is OutputKind.MULTICLASS:
            counted = layout.output.counted_class
            true, predicted = counted(rows.labels.astype(np.int64)), counted(rows.outputs.argmax(axis=1))
            confusion = layout.confusion + true * layout.output.classes + predicted
        for groups, keep in self._assign(rows.event_times, rows.segments):
            self._count(groups, indices, keep, rows.weights)
            if confusion is not None:
                self._count(groups, confusion, keep, rows.weights)
            for column, values in sums:
                self._sum(groups, column, values, keep, rows.weights)

    def add_pairs(self, rows: PairedRows) -> None:
        """Count requests that champion and shadow both answered, with the labels that are known, or only
        the labels (`labels_only`)."""
        n = len(rows.event_times)
        if n == 0:
            return
        layout, base = self._layout, self._layout.common_sums
        labelled = np.isfinite(rows.deltas)
        deltas = np.where(labelled, rows.deltas, 0.0)
        columns: list[tuple[int, Mask | None]] = [(Extra.PAIRS_LABELLED, labelled)]
        sums = [
            (Sums.PAIR_LOSS_DELTA, deltas),
            (Sums.PAIR_LOSS_DELTA_SQUARED, deltas**2),
        ]
        if not rows.labels_only:
            columns += [(Extra.PAIRED, None), (Extra.DISAGREED, rows.differ)]
            sums += [
                (Sums.PAIR_CHAMPION_SCORE, rows.champion_scores),
                (Sums.PAIR_CHAMPION_SQUARED, rows.champion_scores**2),
                (Sums.PAIR_SHADOW_SCORE, rows.shadow_scores),
            ]
        for groups, keep in self._assign(rows.event_times, rows.segments):
            for which, mask in columns:
                self._count(groups, np.full(n, layout.extras + which), _both(mask, keep), rows.weights)
            for sum_, values in sums:
                self._sum(groups, base + sum_, values, keep, rows.weights)

    def merge(self, stored: Mapping[PaneKey, PackedPane]) -> dict[PaneKey, PackedPane]:
        """The new content of every pane that changes: the stored pane plus what was added."""
        layout, size = self._layout, self._layout.size
        changed = {key: i for i, key in enumerate(self.touched())}
        sums = np.zeros((len(changed), layout.sums, LIMBS), np.int64)
        rows = np.zeros(len(changed), np.int64)
        where, added = _total(
            np.concatenate(self._keys), np.concatenate(self._weights), len(self._groups) * size
        )
        added_sums, added_rows = self._added_sums(), self._added_rows()
        keys, weights = [], []
        for width in (self._pane_us, *self._rollups):
            targets = np.array([changed[self._within(key, width)] for key in self._groups], np.int64)
            keys.append(targets[where // size] * size + where % size)
            weights.append(added)
            np.add.at(sums, targets, added_sums)
            np.add.at(rows, targets, added_rows)
        for key, pane in stored.items():
            indices, values = unpack(pane.counts)
            keys.append(changed[key] * size + indices)
            weights.append(values)
            sums[changed[key]] += _stored_sums(layout, pane)
            rows[changed[key]] += pane.predictions
        where, totals = _total(np.concatenate(keys), np.concatenate(weights), len(changed) * size)
        starts = np.searchsorted(where, np.arange(len(changed) + 1) * size)
        sums = carried(sums)
        merged = {}
        for key, i in changed.items():
            part = slice(starts[i], starts[i + 1])
            counts = pack(where[part] - i * size, totals[part])
            merged[key] = PackedPane(counts, pack_sums(sums[i]), int(rows[i]))
        return merged

    def _added_sums(self) -> Ints:
        """[panes, sums, LIMBS]"""
        found = np.zeros((len(self._groups), self._layout.sums, LIMBS), np.int64)
        for groups, columns, limb, values in zip(
            self._sum_groups, self._sum_columns, self._sum_limbs, self._sum_values, strict=True
        ):
            np.add.at(found[..., limb], (groups, columns), values)
        return found

    def _added_rows(self) -> Ints:
        """[panes] predictions."""
        found = np.zeros(len(self._groups), np.int64)
        for groups in self._rows:
            found += np.bincount(groups, minlength=len(found))
        return found

    @staticmethod
    def _within(key: PaneKey, width_us: int) -> PaneKey:
        """The pane of this width that contains the pane."""
        return PaneKey(key.segment, width_us, key.start_us // width_us * width_us)

    def _assign(self, event_times: Ints, segments: tuple[str, ...]) -> Iterable[tuple[Ints, Mask | None]]:
        """(group of each row, mask of the rows to count or None for all): first for the segment "", then
        for the named segments. A group is the index of a pane."""
        panes = event_times // self._pane_us * self._pane_us
        distinct, inverse = np.unique(panes, return_inverse=True)
        ids = np.array([self._group(PaneKey("", self._pane_us, int(p))) for p in distinct], np.int64)
        yield ids[inverse], None
        if segments and any(segments):
            pairs = list(zip(segments, panes.tolist(), strict=True))
            groups = np.array(
                [self._group(PaneKey(s, self._pane_us, p)) if s else 0 for s, p in pairs], np.int64
            )
            yield groups, np.array([bool(s) for s in segments], np.bool_)

    def _group(self, key: PaneKey) -> int:
        return self._groups.setdefault(key, len(self._groups))

    def _count(self, groups: Ints, indices: Ints, keep: Mask | None, weights: Ints | None = None) -> None:
        keys = groups * self._layout.size + indices
        weights = np.ones(len(keys), np.int64) if weights is None else weights
        self._keys.append(keys if keep is None else keys[keep])
        self._weights.append(weights if keep is None else weights[keep])

    def _sum(
        self,
        groups: Ints,
        column: int | Ints,
        values: Floats,
        keep: Mask | None,
        weights: Ints | None = None,
    ) -> None:
        columns = np.broadcast_to(np.asarray(column, np.int64), groups.shape)
        for limb, part in enumerate(limbs_of(values)):
            weighted = part if weights is None else part * weights
            self._sum_groups.append(groups if keep is None else groups[keep])
            self._sum_columns.append(columns if keep is None else columns[keep])
            self._sum_limbs.append(limb)
            self._sum_values.append(weighted if keep is None else weighted[keep])


class WindowSum:
    """Adds up panes in blocks of a window."""

    def __init__(self, layout: Layout, rows: Mapping[int, int]) -> None:
        """`rows`: predictions by start of the panes in microseconds."""
        self._layout = layout
        starts = sorted(rows)
        self._total = sum(rows.values())
        block = block_of(np.array([rows[start] for start in starts], np.int64))
        self._block = dict(zip(starts, block.tolist(), strict=True))
        size = int(block.max(initial=0)) + 1
        self._counts = np.zeros((size, layout.size), np.int64)
        self._sums = np.zeros((size, layout.sums, LIMBS), np.int64)

    def add(self, start_us: int, pane: PackedPane) -> None:
        """Add a pane; panes that appeared since `rows` were read are left out."""
        at = self._block.get(start_us)
        if at is not None:
            indices, values = unpack(pane.counts)
            self._counts[at, indices] += values
            self._sums[at] += _stored_sums(self._layout, pane)

    def result(self) -> WindowCounts:
        return WindowCounts(self._layout, self._counts, carried(self._sums), self._total)


def sum_panes(layout: Layout, panes: Sequence[tuple[int, PackedPane]]) -> WindowCounts:
    """The counts of a window that consists of these panes, each with its start in microseconds."""
    rows: dict[int, int] = {}
    for start, pane in panes:
        rows[start] = rows.get(start, 0) + pane.predictions
    total = WindowSum(layout, rows)
    for start, pane in panes:
        total.add(start, pane)
    return total.result()


def _stored_sums(layout: Layout, pane: PackedPane) -> Ints:
    return unpack_sums(pane.sums, layout.sums, layout.common_sums, version_of(pane.counts))


def _both(a: Mask | None, b: Mask | None) -> Mask | None:
    if a is None or b is None:
        return a if b is None else b
    return a & b


def _total(keys: Ints, weights: Ints, size: int) -> tuple[Ints, Ints]:
    """(distinct keys in ascending order, sum of the weights of each), without keys whose weights sum to 0."""
    if size <= 4 * len(keys):
        dense = np.zeros(size, np.int64)
        np.add.at(dense, keys, weights)
        where = np.flatnonzero(dense)
        return where, dense[where]
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    starts = (
        np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        if len(keys)
        else np.zeros(0, np.int64)
    )
    totals = np.add.reduceat(weights, starts) if len(keys) else np.zeros(0, np.int64)
    kept = totals != 0
    return keys[starts][kept], totals[kept]
