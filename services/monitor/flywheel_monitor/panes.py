"""Panes: additive counts per (role, segment, pane of event time), built from column batches and merged with stored ones.

A pane is stored sparse: the indices of non-zero counts and their values, and the sums as they are. One row of traffic
costs a few bytes per feature; a full pane of 20 features with 128 bins stays below 32 KiB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from flywheel_common.arrays import Array, Floats, Ints, Mask
from flywheel_monitor.batches import PredictionColumns
from flywheel_monitor.layout import (
    CALIBRATION_BINS,
    SCORE_BINS,
    SCORE_SCALE,
    SUM_COUNT,
    Z_SCALE,
    Layout,
    Sums,
    Window,
    fixed,
    latency_bins,
    log_loss_terms,
    score_bins,
    usable_scores,
)

_HEADER = struct.Struct("<I")


class PaneKey(NamedTuple):
    """`shadow` answers are kept apart: nobody was served them. `start_us` is event time, microseconds."""

    shadow: bool
    segment: str
    start_us: int


class PackedPane(NamedTuple):
    """A pane as it is stored."""

    counts: bytes
    sums: bytes
    predictions: int


@dataclass(frozen=True)
class Rows:
    """Decoded answers of one model version, n rows. `features`: name → (values, valid), all of length n."""

    event_times: Ints
    scores: Floats
    sources: Ints
    latencies_ms: Floats
    failed: Mask
    segments: tuple[str, ...]
    features: Mapping[str, tuple[Array, Mask]]
    shadow: bool


def rows_of(batch: PredictionColumns, keep: Mask) -> Rows:
    """The rows of a batch that are kept."""
    rows = Rows(
        batch.event_times,
        batch.scores,
        batch.sources,
        batch.latencies_ms,
        batch.failed,
        batch.segments,
        batch.features,
        batch.shadow,
    )
    if bool(keep.all()):
        return rows
    return replace(
        rows,
        event_times=rows.event_times[keep],
        scores=rows.scores[keep],
        sources=rows.sources[keep],
        latencies_ms=rows.latencies_ms[keep],
        failed=rows.failed[keep],
        segments=tuple(s for s, k in zip(rows.segments, keep.tolist(), strict=True) if k),
        features={name: (values[keep], valid[keep]) for name, (values, valid) in rows.features.items()},
    )


def pack(indices: Ints, values: Ints) -> bytes:
    """Sparse counts as bytes: u32 n, u32 indices, i32 values. Label corrections may leave no negative total."""
    return _HEADER.pack(len(indices)) + indices.astype("<u4").tobytes() + values.astype("<i4").tobytes()


def unpack(packed: bytes) -> tuple[Ints, Ints]:
    """(indices, values) of sparse counts."""
    (n,) = _HEADER.unpack_from(packed)
    indices = np.frombuffer(packed, "<u4", n, 4).astype(np.int64)
    return indices, np.frombuffer(packed, "<i4", n, 4 + 4 * n).astype(np.int64)


class PaneAccumulator:
    """Collects the effect of one transaction on the panes of one model version and one partition."""

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
        """The panes touched."""
        return list(self._groups)

    def add_rows(self, rows: Rows) -> None:
        """Counts n new answers, in the segment '' and in their named one."""
        n = len(rows.event_times)
        if n == 0:
            return
        layout = self._layout
        usable = usable_scores(rows.scores, rows.sources)
        columns: list[tuple[Ints, Mask | None]] = []
        by_model = rows.sources == 1
        for bins in layout.features:
            values, valid = rows.features.get(bins.name, (None, np.zeros(n, np.bool_)))
            columns.append((layout.offsets[bins.name] + bins.assign(values, valid, n), by_model))
        columns.append((layout.scores + score_bins(np.where(usable, rows.scores, 0.0)), usable))
        columns.append((layout.latencies + latency_bins(rows.latencies_ms), None))
        columns.append((layout.sources + np.clip(rows.sources, 0, 4), None))
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
        """Counts n labels in the panes of their predictions; weight -1 takes a corrected label back. Scores must be
        usable ones; labels other than 0 and 1 count by `label > 0.5`."""
        n = len(event_times)
        if n == 0:
            return
        layout, base = self._layout, self._layout.common_sums
        positive = labels > 0.5
        bins = score_bins(scores)
        indices = np.where(positive, layout.positives, layout.negatives) + bins
        terms = [
            (base + Sums.LABEL, positive.astype(np.float64)),
            (base + Sums.LOG_LOSS, log_loss_terms(scores, labels)),
            (base + Sums.BRIER, (scores - positive) ** 2),
            (base + Sums.LABELLED_SCORE, scores),
        ]
        calibration = base + Sums.CALIBRATION + bins // (SCORE_BINS // CALIBRATION_BINS)
        for groups, keep in self._assign(event_times, segments, shadow):
            self._count(groups, indices, keep, weights)
            for column, values in terms:
                self._sum(groups, column, fixed(values, SCORE_SCALE) * weights, keep)
            self._sum(groups, calibration, fixed(scores, SCORE_SCALE) * weights, keep)

    def merge(self, stored: Mapping[PaneKey, PackedPane]) -> dict[PaneKey, PackedPane]:
        """The new content of every touched pane: what is stored plus what was added."""
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
        """(group of each row, rows that belong) once for all rows and once for the rows with a named segment."""
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


def add_panes(layout: Layout, panes: Iterable[PackedPane]) -> Window:
    """The window that some panes make up."""
    counts = np.zeros(layout.size, np.int64)
    sums = np.zeros(layout.sums, np.int64)
    predictions = 0
    for pane in panes:
        indices, values = unpack(pane.counts)
        counts[indices] += values
        sums += np.frombuffer(pane.sums, "<i8")
        predictions += pane.predictions
    return Window(layout, counts, sums, predictions)


def _both(a: Mask | None, b: Mask | None) -> Mask | None:
    if a is None or b is None:
        return a if b is None else b
    return a & b


def _total(keys: Ints, weights: Ints, size: int) -> tuple[Ints, Ints]:
    """(distinct keys in order, sum of weights of each), without those that sum to 0."""
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


assert SUM_COUNT == Sums.CALIBRATION + CALIBRATION_BINS
