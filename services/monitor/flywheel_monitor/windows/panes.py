"""Panes: counts per (variant, segment, slice of event time), built from batches and added to stored ones.

A pane is a slice of event time that counts are kept for. What is added to a pane is added to the hour and the
day that contain it in the same transaction, so that a long window is the sum of few rows. A pane is stored
sparse: the indices and values of the counts that are not zero, and all sums. One row of traffic costs a few
bytes per feature; a full pane of 20 features with 128 bins stays below 32 KiB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from flywheel_common.arrays import Array, Floats, Ints, Mask
from flywheel_common.signature import OutputKind
from flywheel_monitor.windows.delays import delay_bins
from flywheel_monitor.windows.histograms import calibration_bins, latency_bins
from flywheel_monitor.windows.layout import SOURCES, Extra, Layout, Sums
from flywheel_monitor.windows.losses import loss_terms
from flywheel_monitor.windows.numeric_columns import is_number
from flywheel_monitor.windows.output import CLASS_BINS
from flywheel_monitor.windows.packing import pack, pack_sums, unpack, unpack_sums, version_of
from flywheel_monitor.windows.projection import PROJECTION_BINS
from flywheel_monitor.windows.rows import LabelledRows, PairedRows, Rows, Source, usable_scores
from flywheel_monitor.windows.sums import EXACT_ROWS, LIMBS, carried, exact_terms, limbs_of
from flywheel_monitor.windows.vectors import with_projections

_Column: TypeAlias = tuple[int | Ints, Mask | None]
"""The index that each row counts at (of several columns [columns, n]), and the rows that count or None for
all."""
_Sum: TypeAlias = tuple[int | Ints, Floats]
"""The sum that the values [n] are added to, or sums [sums] and values [sums, n]."""
_Assigned: TypeAlias = list[tuple[Ints, Mask | None]]
"""(group of each row, mask of the rows to count or None for all)."""


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
        self._sums: list[tuple[Ints, Ints, int, Ints]] = []
        """(panes [P], columns [K], limb, values [P, K]) to add."""
        self._row_sums: list[tuple[Ints, Ints, int, Ints]] = []
        """(pane, column, limb, value) of rows, [n] each."""
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
        for start in range(0, len(rows.event_times), EXACT_ROWS):
            self._add_part(rows.part(slice(start, start + EXACT_ROWS)))

    def _add_part(self, rows: Rows) -> None:
        """`add_rows` of at most EXACT_ROWS rows."""
        layout = self._layout
        usable = usable_scores(rows.scores, rows.sources)
        by_model = rows.sources == Source.MODEL
        columns, sums = self._features(rows, by_model)
        scores = np.where(usable, rows.scores, 0.0)
        answered = by_model | (rows.sources == Source.CACHED)
        costed = np.isfinite(rows.costs)
        columns.append((layout.scores + layout.output.score_bins(scores), usable))
        columns.append((layout.latencies + latency_bins(rows.latencies_ms), None))
        columns.append((layout.sources + np.clip(rows.sources, 0, SOURCES - 1), None))
        columns.append((layout.failures, rows.failed))
        for which, mask in (
            (Extra.UNUSABLE, answered & ~usable),
            (Extra.DECISIONS, rows.decisions),
            (Extra.COSTED, costed),
        ):
            columns.append((layout.extras + which, mask))
        columns += self._class_columns(rows, usable)
        columns += self._projection_columns(rows, usable)
        base = layout.common_sums
        sums.append((base + Sums.SCORE, scores))
        sums.append((base + Sums.SCORE_SQUARED, scores * scores))
        sums.append((base + Sums.COST, np.where(costed, rows.costs, 0.0)))
        assigned = self._assign(rows.event_times, rows.segments)
        self._add(assigned, columns, sums)
        for groups, keep in assigned:
            self._rows.append(groups if keep is None else groups[keep])

    def _features(self, rows: Rows, by_model: Mask) -> tuple[list[_Column], list[_Sum]]:
        """The columns and the sums of the features, which count where the model was called."""
        layout, n = self._layout, len(rows.event_times)
        features = with_projections(rows.features, layout.vector_projections)
        columns: list[_Column] = []
        sums: list[_Sum] = []
        where = None if by_model.all() else by_model
        numbers = [
            f.name
            for f in layout.features
            if f.numeric and f.name in features and is_number(features[f.name][0])
        ]
        if numbers:
            together = layout.numeric_columns
            if len(numbers) < len(together.features):
                together = together.only(numbers)
            x = np.stack([features[f.name][0] for f in together.features]).astype(np.float64, copy=False)
            valid = np.stack([features[f.name][1] for f in together.features])
            bins = together.assign(x, valid)
            bins += np.array([layout.offsets[f.name] for f in together.features])[:, None]
            columns.append((bins, where))
            raw, clipped = together.standardized(x, valid & by_model)
            number = np.array([layout.numeric[f.name] for f in together.features])
            at = layout.moments + 2 * number
            sums += [(number, clipped), (at, raw), (at + 1, raw**2)]
        for one in layout.features:
            if one.name not in numbers:
                values, valid = features.get(one.name, (None, np.zeros(n, np.bool_)))
                columns.append((layout.offsets[one.name] + one.assign(values, valid, n), where))
        return columns, sums

    def _class_columns(self, rows: Rows, usable: Mask) -> list[_Column]:
        """Predicted classes and the bins of the probabilities of a MULTICLASS output."""
        layout, output = self._layout, self._layout.output
        if output.kind is not OutputKind.MULTICLASS:
            return []
        p = np.where(usable[:, None], rows.outputs, 0.0)
        columns: list[_Column] = [(layout.predicted + output.counted_class(p.argmax(axis=1)), usable)]
        for c in range(min(output.width, output.classes)):
            bins = np.clip(np.floor(p[:, c] * CLASS_BINS), 0, CLASS_BINS - 1).astype(np.int64)
            columns.append((layout.class_bins + c * CLASS_BINS + bins, usable))
        return columns

    def _projection_columns(self, rows: Rows, usable: Mask) -> list[_Column]:
        """The bins of the projections of a VECTOR output."""
        layout, projections = self._layout, self._layout.output.projections
        if projections is None:
            return []
        bins = projections.bins(np.where(usable[:, None], rows.outputs, 0.0))
        starts = layout.projections + np.arange(layout.projected) * PROJECTION_BINS
        return [(starts[k] + bins[:, k], usable) for k in range(layout.projected)]

    def add_labels(self, rows: LabelledRows) -> None:
        """Count labels in the panes of their predictions."""
        if len(rows.event_times) == 0:
            return
        layout, base = self._layout, self._layout.common_sums
        terms = loss_terms(layout.output, rows.scores, rows.outputs, rows.labels)
        indices = np.where(terms.positive, layout.positives, layout.negatives) + terms.bins
        sums: list[_Sum] = [
            (base + Sums.LABEL, terms.label),
            (base + Sums.LABEL_SQUARED, terms.label**2),
            (base + Sums.LOSS, terms.loss),
            (base + Sums.LOSS_SQUARED, terms.loss**2),
            (base + Sums.BRIER, terms.brier),
            (base + Sums.ABSOLUTE_ERROR, terms.absolute_error),
            (base + Sums.LABELLED_SCORE, rows.scores),
        ]
        columns: list[_Column] = [(indices, None)]
        if layout.output.kind is OutputKind.MULTICLASS:
            counted = layout.output.counted_class
            true, predicted = counted(rows.labels.astype(np.int64)), counted(rows.outputs.argmax(axis=1))
            columns.append((layout.confusion + true * layout.output.classes + predicted, None))
        if rows.delays is not None:
            known = np.isfinite(rows.delays)
            columns.append((layout.delays + delay_bins(np.where(known, rows.delays, 0.0)), known))
        by_bin = None
        if layout.output.unit_interval:
            by_bin = base + Sums.CALIBRATION + calibration_bins(terms.bins), rows.scores
        self._add(self._assign(rows.event_times, rows.segments), columns, sums, rows.weights, by_bin)

    def add_pairs(self, rows: PairedRows) -> None:
        """Count requests that champion and shadow both answered, with the labels that are known, or only
        the labels (`labels_only`)."""
        n = len(rows.event_times)
        if n == 0:
            return
        layout, base = self._layout, self._layout.common_sums
        labelled = np.isfinite(rows.deltas)
        deltas = np.where(labelled, rows.deltas, 0.0)
        first = layout.extras
        columns: list[_Column] = [
            (first + Extra.PAIRS_LABELLED, labelled),
            (layout.right, rows.right < 0),
            (layout.right + 1, rows.right > 0),
        ]
        sums: list[_Sum] = [
            (base + Sums.PAIR_LOSS_DELTA, deltas),
            (base + Sums.PAIR_LOSS_DELTA_SQUARED, deltas**2),
        ]
        if not rows.labels_only:
            columns += [(first + Extra.PAIRED, None), (first + Extra.DISAGREED, rows.differ)]
            sums += [
                (base + Sums.PAIR_CHAMPION_SCORE, rows.champion_scores),
                (base + Sums.PAIR_CHAMPION_SQUARED, rows.champion_scores**2),
                (base + Sums.PAIR_SHADOW_SCORE, rows.shadow_scores),
            ]
        self._add(self._assign(rows.event_times, rows.segments), columns, sums, rows.weights)

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
            sums[changed[key]] += stored_sums(layout, pane)
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
        for groups, columns, limb, values in self._sums:
            found[groups[:, None], columns[None, :], limb] += values
        for groups, columns, limb, values in self._row_sums:
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

    def _assign(self, event_times: Ints, segments: tuple[str, ...]) -> _Assigned:
        """The groups of the rows, first for the segment "", then for the named segments. A group is the index
        of a pane."""
        panes = event_times // self._pane_us * self._pane_us
        distinct, inverse = _distinct(panes)
        ids = np.array([self._group(PaneKey("", self._pane_us, p)) for p in distinct.tolist()], np.int64)
        found: _Assigned = [(ids[inverse], None)]
        if segments and any(segments):
            pairs = list(zip(segments, panes.tolist(), strict=True))
            groups = np.array(
                [self._group(PaneKey(s, self._pane_us, p)) if s else 0 for s, p in pairs], np.int64
            )
            found.append((groups, np.array([bool(s) for s in segments], np.bool_)))
        return found

    def _group(self, key: PaneKey) -> int:
        return self._groups.setdefault(key, len(self._groups))

    def _add(
        self,
        assigned: _Assigned,
        columns: Sequence[_Column],
        sums: Sequence[_Sum],
        weights: Ints | None = None,
        by_row: tuple[Ints, Floats] | None = None,
    ) -> None:
        """Count n rows in these columns, each in the rows of its mask, and add up these sums; `by_row`:
        values that go to another column [n] in each row."""
        size, n = self._layout.size, len(assigned[0][0])
        parts: list[tuple[Ints, int, Array]] = []
        for places, added_up in sums:
            block = np.atleast_2d(added_up)
            # Floats add faster than integers, and as exactly while they are small.
            terms = exact_terms(block) if n <= EXACT_ROWS and weights is None else None
            limbs: list[Ints] | list[Floats] = limbs_of(block) if terms is None else [terms]
            for which, terms_of in enumerate(limbs):
                parts.append((np.atleast_1d(places), which, terms_of))
        row_limbs = [] if by_row is None else limbs_of(by_row[1])
        for groups, keep in assigned:
            panes, starts, order = _runs(groups)
            # Counted at once for the panes of these rows, which are few.
            local = None if len(panes) == 1 else np.searchsorted(panes, groups) * size
            where, totals = _counted(n, columns, local, keep, weights, len(panes) * size)
            self._keys.append(panes[where // size] * size + where % size)
            self._weights.append(totals)
            for places, limb, values in parts:
                weighted = values if weights is None else values * weights
                weighted = weighted if keep is None else weighted * keep
                found = np.add.reduceat(weighted if order is None else weighted[:, order], starts, axis=1)
                self._sums.append((panes, places, limb, found.T.astype(np.int64)))
            for limb, part in enumerate(row_limbs):
                assert by_row is not None
                added = part if weights is None else part * weights
                self._row_sums.append((groups, by_row[0], limb, added if keep is None else added * keep))


def _distinct(values: Ints) -> tuple[Ints, Ints]:
    """(distinct values in ascending order, the index among them of each value)."""
    rises = values[1:] != values[:-1]
    if (values[1:] < values[:-1]).any():
        found, inverse = np.unique(values, return_inverse=True)
        return found, inverse
    return values[np.concatenate([[True], rises])], np.concatenate([[0], np.cumsum(rises)])


def _counted(
    rows: int,
    columns: Sequence[_Column],
    first: Ints | None,
    keep: Mask | None,
    weights: Ints | None,
    size: int,
) -> tuple[Ints, Ints]:
    """(distinct keys below `size`, rows of each) of all columns. `first`: what is added to the index of each
    row, None for 0; `keep`: the rows that count at all; `weights` of the rows, None for 1."""
    keys: list[Ints] = []
    added: list[Ints] = []
    for column, mask in columns:
        shown = mask if keep is None else keep if mask is None else mask & keep
        chosen = slice(None) if shown is None else np.flatnonzero(shown)
        mine = np.full(rows, column, np.int64) if isinstance(column, int) else np.atleast_2d(column)
        mine = np.atleast_2d(mine if first is None else mine + first)[:, chosen]
        keys.append(mine.ravel())
        if weights is not None:
            added.append(np.broadcast_to(weights[chosen], mine.shape).ravel())
    if weights is not None:
        return _total(np.concatenate(keys), np.concatenate(added), size)
    if size > 4 * sum(map(len, keys)):
        together = np.concatenate(keys)
        return _total(together, np.ones(len(together), np.int64), size)
    dense = np.zeros(size, np.int64)
    for part in keys:
        dense += np.bincount(part, minlength=size)
    where = np.flatnonzero(dense)
    return where, dense[where]


def _runs(groups: Ints) -> tuple[Ints, Ints, Ints | None]:
    """(distinct groups, start of each in the sorted rows, the order that sorts the rows or None if they
    are)."""
    order = None
    if (groups[1:] < groups[:-1]).any():
        order = np.argsort(groups, kind="stable")
        groups = groups[order]
    starts = np.concatenate([[0], np.flatnonzero(groups[1:] != groups[:-1]) + 1])
    return groups[starts], starts, order


def stored_sums(layout: Layout, pane: PackedPane) -> Ints:
    """[layout.sums, LIMBS] of a stored pane."""
    return unpack_sums(pane.sums, layout.sums, layout.common_sums, version_of(pane.counts))


def _total(keys: Ints, weights: Ints, size: int) -> tuple[Ints, Ints]:
    """(distinct keys in ascending order, sum of the weights of each), without keys whose weights sum to 0."""
    if size <= 4 * len(keys):
        # Sums of fewer than 2^53 small integers are exact.
        dense = np.bincount(keys, weights, size).astype(np.int64)
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
