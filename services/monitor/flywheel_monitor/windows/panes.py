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
from flywheel_monitor.windows.additions import Additions, Column, of_labels, of_pairs, of_predictions
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.packing import pack, pack_sums, unpack, unpack_sums, version_of
from flywheel_monitor.windows.rows import LabelledRows, PairedRows, Rows
from flywheel_monitor.windows.sums import EXACT_ROWS, LIMBS, carried, exact_terms, limbs_of

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
            part = rows.part(slice(start, start + EXACT_ROWS))
            additions = of_predictions(self._layout, part)
            assigned = self._assign(part.event_times, part.segments)
            self._add(assigned, additions)
            for groups, keep in assigned:
                self._rows.append(groups if keep is None else groups[keep])

    def add_labels(self, rows: LabelledRows) -> None:
        """Count labels in the panes of their predictions."""
        if len(rows.event_times):
            additions = of_labels(self._layout, rows)
            self._add(self._assign(rows.event_times, rows.segments), additions, rows.weights)

    def add_pairs(self, rows: PairedRows) -> None:
        """Count requests that champion and shadow both answered, with the labels that are known, or only
        the labels (`labels_only`)."""
        if len(rows.event_times):
            additions = of_pairs(self._layout, rows)
            self._add(self._assign(rows.event_times, rows.segments), additions, rows.weights)

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

    def _add(self, assigned: _Assigned, additions: Additions, weights: Ints | None = None) -> None:
        """Add what n rows with these weights add to the panes that they are assigned to."""
        columns, sums, by_row = additions
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
    columns: Sequence[Column],
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
