"""Panes: counts per (served or shadow, segment, slice of event time), built from batches and added to stored
ones.

A pane is the smallest slice of event time that counts are kept for; a window is the sum of whole panes. A
pane is stored sparse: the indices and values of the counts that are not zero, and all sums. One row of
traffic costs a few bytes per feature; a full pane of 20 features with 128 bins stays below 32 KiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_monitor.windows.blocks import block_of
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.histograms import calibration_bins, latency_bins, score_bins
from flywheel_monitor.windows.layout import SCORE_SCALE, SOURCES, Z_SCALE, Layout, Sums, fixed
from flywheel_monitor.windows.losses import brier_terms, is_positive, log_loss_terms
from flywheel_monitor.windows.packing import pack, unpack
from flywheel_monitor.windows.rows import Rows, Source, usable_scores


class PaneKey(NamedTuple):
    """Identifies a pane of a model version. Shadow predictions are counted apart, because they are not
    served. `start_us` is event time in microseconds."""

    shadow: bool
    segment: str
    start_us: int


class PackedPane(NamedTuple):
    """A pane as it is stored."""

    counts: bytes
    sums: bytes
    predictions: int


class PaneAccumulator:
    """Collects what one transaction adds to the panes of one model version and one partition."""

    def __init__(self, layout: Layout, pane_us: int) -> None:
        self._layout = layout
        self._pane_us = pane_us
        self._groups: dict[PaneKey, int] = {}
        self._keys: list[Ints] = []
        self._weights: list[Ints] = []
        self._sum_groups: list[Ints] = []
        self._sum_columns: list[Ints] = []
        self._sum_values: list[Ints] = []
        self._rows: list[Ints] = []

    def __bool__(self) -> bool:
        return bool(self._groups)

    def touched(self) -> list[PaneKey]:
        """Keys of the panes that change."""
        return list(self._groups)

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
        columns.append((layout.scores + score_bins(np.where(usable, rows.scores, 0.0)), usable))
        columns.append((layout.latencies + latency_bins(rows.latencies_ms), None))
        columns.append((layout.sources + np.clip(rows.sources, 0, SOURCES - 1), None))
        columns.append((np.full(n, layout.failures), rows.failed))
        sums: list[tuple[int, Ints]] = []
        for bins in layout.features:
            if bins.numeric and bins.name in rows.features:
                z = bins.standardized(*rows.features[bins.name], n)
                sums.append((layout.numeric[bins.name], fixed(np.where(by_model, z, 0.0), Z_SCALE)))
        scores = np.where(usable, rows.scores, 0.0)
        sums.append((layout.common_sums + Sums.SCORE, fixed(scores, SCORE_SCALE)))
        sums.append((layout.common_sums + Sums.SCORE_SQUARED, fixed(scores * scores, SCORE_SCALE)))
        for groups, keep in self._assign(rows.event_times, rows.segments, rows.shadow):
            for indices, mask in columns:
                self._count(groups, indices, _both(mask, keep))
            for column, values in sums:
                self._sum(groups, column, values, keep)
            self._rows.append(groups if keep is None else groups[keep])

    def add_labels(
        self,
        event_times: Ints,
        segments: tuple[str, ...],
        shadow: bool,
        scores: Floats,
        labels: Floats,
        weights: Ints,
    ) -> None:
        """Count n labels in the panes of their predictions; weight -1 takes a corrected label back. Scores
        must be usable (`usable_scores`)."""
        n = len(event_times)
        if n == 0:
            return
        layout, base = self._layout, self._layout.common_sums
        positive = is_positive(labels)
        bins = score_bins(scores)
        indices = np.where(positive, layout.positives, layout.negatives) + bins
        terms = [
            (base + Sums.LABEL, positive.astype(np.float64)),
            (base + Sums.LOG_LOSS, log_loss_terms(scores, labels)),
            (base + Sums.BRIER, brier_terms(scores, labels)),
            (base + Sums.LABELLED_SCORE, scores),
        ]
        calibration = base + Sums.CALIBRATION + calibration_bins(bins)
        for groups, keep in self._assign(event_times, segments, shadow):
            self._count(groups, indices, keep, weights)
            for column, values in terms:
                self._sum(groups, column, fixed(values, SCORE_SCALE) * weights, keep)
            self._sum(groups, calibration, fixed(scores, SCORE_SCALE) * weights, keep)

    def merge(self, stored: Mapping[PaneKey, PackedPane]) -> dict[PaneKey, PackedPane]:
        """The new content of every pane that changes: the stored pane plus what was added."""
        layout, size = self._layout, self._layout.size
        keys, weights = list(self._keys), list(self._weights)
        sums = np.zeros((len(self._groups), layout.sums), np.int64)
        rows = np.zeros(len(self._groups), np.int64)
        for key, pane in stored.items():
            group = self._groups[key]
            indices, values = unpack(pane.counts)
            keys.append(group * size + indices)
            weights.append(values)
            sums[group] += np.frombuffer(pane.sums, "<i8")
            rows[group] += pane.predictions
        for groups, columns, values in zip(
            self._sum_groups, self._sum_columns, self._sum_values, strict=True
        ):
            np.add.at(sums, (groups, columns), values)
        for groups in self._rows:
            rows += np.bincount(groups, minlength=len(rows))
        where, totals = _total(np.concatenate(keys), np.concatenate(weights), len(self._groups) * size)
        starts = np.searchsorted(where, np.arange(len(self._groups) + 1) * size)
        merged = {}
        for key, group in self._groups.items():
            part = slice(starts[group], starts[group + 1])
            counts = pack(where[part] - group * size, totals[part])
            merged[key] = PackedPane(counts, sums[group].astype("<i8").tobytes(), int(rows[group]))
        return merged

    def _assign(
        self, event_times: Ints, segments: tuple[str, ...], shadow: bool
    ) -> Iterable[tuple[Ints, Mask | None]]:
        """(group of each row, mask of the rows to count or None for all): first for the segment "", then
        for the named segments. A group is the index of a pane."""
        panes = event_times // self._pane_us * self._pane_us
        distinct, inverse = np.unique(panes, return_inverse=True)
        ids = np.array([self._group(PaneKey(shadow, "", int(p))) for p in distinct], np.int64)
        yield ids[inverse], None
        if segments and any(segments):
            pairs = list(zip(segments, panes.tolist(), strict=True))
            groups = np.array([self._group(PaneKey(shadow, s, p)) if s else 0 for s, p in pairs], np.int64)
            yield groups, np.array([bool(s) for s in segments], np.bool_)

    def _group(self, key: PaneKey) -> int:
        return self._groups.setdefault(key, len(self._groups))

    def _count(self, groups: Ints, indices: Ints, keep: Mask | None, weights: Ints | None = None) -> None:
        keys = groups * self._layout.size + indices
        weights = np.ones(len(keys), np.int64) if weights is None else weights
        self._keys.append(keys if keep is None else keys[keep])
        self._weights.append(weights if keep is None else weights[keep])

    def _sum(self, groups: Ints, column: int | Ints, values: Ints, keep: Mask | None) -> None:
        columns = np.broadcast_to(np.asarray(column, np.int64), groups.shape)
        self._sum_groups.append(groups if keep is None else groups[keep])
        self._sum_columns.append(columns if keep is None else columns[keep])
        self._sum_values.append(values if keep is None else values[keep])


def sum_panes(layout: Layout, panes: Sequence[tuple[int, PackedPane]]) -> WindowCounts:
    """The counts of a window that consists of these panes, each with its start in microseconds."""
    starts, places = np.unique([start for start, _ in panes], return_inverse=True)
    rows = np.zeros(len(starts), np.int64)
    np.add.at(rows, places, [pane.predictions for _, pane in panes])
    blocks = block_of(rows)
    size = int(blocks.max(initial=0)) + 1
    counts = np.zeros((size, layout.size), np.int64)
    sums = np.zeros((size, layout.sums), np.int64)
    for place, (_, pane) in zip(places.tolist(), panes, strict=True):
        indices, values = unpack(pane.counts)
        counts[blocks[place], indices] += values
        sums[blocks[place]] += np.frombuffer(pane.sums, "<i8")
    return WindowCounts(layout, counts, sums, int(rows.sum()))


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
