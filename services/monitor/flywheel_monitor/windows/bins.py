"""Bins of one feature, fixed by its profile in the training set, and vectorised counting into them.

A vector of `size` counts: the regular bins (numeric: right-closed quantile bins, categorical: one per listed
category), then one bin for each kind of value that has no regular bin (`Special`). No row is dropped: the
counts of n rows sum to n, so a window that is half null differs from the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from flywheel_common.arrays import Array, Floats, Ints, Mask

FAR_WIDTHS = 10.0
"""A number that lies more than this many reference ranges (max - min) outside the range is FAR: a wrong
unit or a broken sensor, not a shift."""


class Special(IntEnum):
    """Bins of values without a regular bin, as offsets after the regular bins."""

    NULL = 0
    NON_FINITE = 1
    BELOW = 2
    ABOVE = 3
    FAR = 4
    UNSEEN = 5
    MALFORMED = 6


SPECIALS = len(Special)


@dataclass(frozen=True)
class ColumnReference:
    """A column's profile in the training set. Numeric: `edges` are k inner edges and `counts` k + 1 rows
    per bin; categorical: `categories` and `counts` are equally long, and `other_count` rows had an
    unlisted category."""

    name: str
    numeric: bool
    counts: tuple[int, ...]
    null_count: int = 0
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    other_count: int = 0
    mean: float = 0.0
    stddev: float = 0.0
    minimum: float = 0.0
    maximum: float = 0.0
    vector: str = ""
    """The vector that this is a projection of (`windows.vectors`); `width`: its size, `axis`: which one."""
    width: int = 0
    axis: int = 0

    @property
    def feature(self) -> str:
        """The feature that the column belongs to: the vector, or the column itself."""
        return self.vector or self.name

    def to_json(self) -> dict[str, Any]:
        found = dict(vars(self))
        if not self.vector:
            del found["vector"], found["width"], found["axis"]
        return found

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ColumnReference:
        loaded: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return cls(**loaded)

    def problem(self) -> str | None:
        """Why the profile cannot be a reference, or None."""
        if self.numeric:
            if len(self.counts) != len(self.edges) + 1:
                return f"{self.name}: {len(self.counts)} bins for {len(self.edges)} edges"
            if any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
                return f"{self.name}: edges do not increase"
        elif len(self.counts) != len(self.categories):
            return f"{self.name}: {len(self.counts)} counts for {len(self.categories)} categories"
        if sum(self.counts) + self.null_count + self.other_count == 0:
            return f"{self.name}: no rows"
        return None


@dataclass(frozen=True, eq=False)
class FeatureBins:
    """Assigns the values of a feature to bins. Compared by identity, because it keeps what is derived."""

    reference: ColumnReference

    @property
    def name(self) -> str:
        return self.reference.name

    @property
    def numeric(self) -> bool:
        return self.reference.numeric

    @cached_property
    def regular(self) -> int:
        """Number of regular bins."""
        return len(self.reference.counts)

    @property
    def size(self) -> int:
        return self.regular + SPECIALS

    @cached_property
    def reference_counts(self) -> Ints:
        """[size] rows of the training set per bin. Rare categories of the training set count as UNSEEN,
        because the profile does not list them and they look like new ones."""
        counts = np.zeros(self.size, np.int64)
        counts[: self.regular] = self.reference.counts
        counts[self.regular + Special.NULL] = self.reference.null_count
        counts[self.regular + Special.UNSEEN] = self.reference.other_count
        return counts

    @cached_property
    def reference_shares(self) -> BadShares:
        """The bad shares of the training set."""
        return bad_shares(self, self.reference_counts)

    @cached_property
    def _edges(self) -> Floats:
        return np.asarray(self.reference.edges, np.float64)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {category: i for i, category in enumerate(self.reference.categories)}

    @cached_property
    def far(self) -> tuple[float, float]:
        """Numbers below the first and above the second are FAR."""
        width = (self.reference.maximum - self.reference.minimum) * FAR_WIDTHS
        if width <= 0:
            return -np.inf, np.inf
        return self.reference.minimum - width, self.reference.maximum + width

    @cached_property
    def positions(self) -> Floats:
        """[regular + 2] places on the axis of below, the regular bins and above: the right edges of the
        right-closed bins; what is outside the range counts at its ends."""
        low, high = self.reference.minimum, self.reference.maximum
        return np.concatenate([[low], self._edges, [high, high]])

    def assign(self, values: Array | None, valid: Mask, rows: int) -> Ints:
        """[rows] bin of each row. `values` None: the column was not logged, every row is NULL."""
        if values is None:
            return np.full(rows, self.regular + Special.NULL, np.int64)
        if self.numeric:
            return self._assign_numeric(values, valid)
        return self._assign_categories(values, valid)

    def _assign_numeric(self, values: Array, valid: Mask) -> Ints:
        if values.ndim != 1 or values.dtype.kind not in "biuf":
            bins = np.full(len(values), self.regular + Special.MALFORMED, np.int64)
            bins[~valid] = self.regular + Special.NULL
            return bins
        x = values.astype(np.float64, copy=False)
        # side="left" is the right-closed rule: edges[i-1] < x <= edges[i].
        bins = np.searchsorted(self._edges, x, side="left").astype(np.int64, copy=False)
        low, high = self.reference.minimum, self.reference.maximum
        far_low, far_high = self.far
        outside = ~((x >= low) & (x <= high))
        if outside.any():
            at = np.flatnonzero(outside)
            y = x[at]
            kinds = np.where(y < low, int(Special.BELOW), int(Special.ABOVE))
            kinds[(y < far_low) | (y > far_high)] = Special.FAR
            kinds[~np.isfinite(y)] = Special.NON_FINITE
            bins[at] = self.regular + kinds
        if not valid.all():
            bins[~valid] = self.regular + Special.NULL
        return bins

    def _assign_categories(self, values: Array, valid: Mask) -> Ints:
        unseen = self.regular + int(Special.UNSEEN)
        index = self._index
        if values.ndim != 1 or values.dtype.kind not in "OUbiu":
            bins = np.full(len(values), self.regular + Special.MALFORMED, np.int64)
        elif values.dtype.kind == "b":
            false, true = (index.get(t, index.get(t.title(), unseen)) for t in ("false", "true"))
            bins = np.where(values, true, false).astype(np.int64)
        else:
            texts = values.tolist() if values.dtype.kind != "i" else [str(v) for v in values.tolist()]
            bins = np.fromiter((index.get(t, unseen) for t in texts), np.int64, len(texts))
        if not valid.all():
            bins[~valid] = self.regular + Special.NULL
        return bins

    @cached_property
    def standardized_range(self) -> tuple[float, float]:
        """The ends of the reference's range as `standardized` gives them. What is outside counts as these in
        the mean of a window, so that one outlier does not move it (a winsorized mean)."""
        spread = self.reference.stddev if self.reference.stddev > 0 else np.inf
        low, high = self.reference.minimum, self.reference.maximum
        return (low - self.reference.mean) / spread, (high - self.reference.mean) / spread

    def standardized(self, values: Array | None, valid: Mask, rows: int, *, clip: bool = True) -> Floats:
        """[rows] (x - reference mean) / reference stddev, limited to ±1e6 and with `clip` to the range of the
        reference; 0 where x is null, not finite or no number, and for a constant reference."""
        spread = self.reference.stddev
        if (
            values is None
            or not self.numeric
            or not spread > 0
            or values.ndim != 1
            or values.dtype.kind not in "biuf"
        ):
            return np.zeros(rows)
        x = values.astype(np.float64, copy=False)
        with np.errstate(invalid="ignore", over="ignore"):
            z = np.clip((x - self.reference.mean) / spread, -1e6, 1e6)
            z = np.clip(z, *self.standardized_range) if clip else z
        return np.where(valid & np.isfinite(x), z, 0.0)


class BadShares(NamedTuple):
    """Shares of the rows of a feature that have no usable value or an unexpected one. `missing`: null, NaN,
    infinite or of a wrong type; `malformed`: of a wrong type; `broken`: what no shift explains, far outside
    the range or an unlisted category."""

    missing: float
    malformed: float
    broken: float


def missing(bins: FeatureBins, counts: Ints) -> int:
    """Rows that are null, NaN, infinite or of a wrong type."""
    return sum(int(counts[bins.regular + s]) for s in (Special.NULL, Special.NON_FINITE, Special.MALFORMED))


def bad_shares(bins: FeatureBins, counts: Ints) -> BadShares:
    """The shares in counts [size]."""
    rows, special = max(1, int(counts.sum())), counts[bins.regular :].tolist()
    without = special[Special.NULL] + special[Special.NON_FINITE] + special[Special.MALFORMED]
    broken = special[Special.FAR] + special[Special.UNSEEN]
    return BadShares(without / rows, special[Special.MALFORMED] / rows, broken / rows)
