"""The bins of several features as matrices, so that their statistics are computed at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.drift import design_effect, ks, psi
from flywheel_monitor.windows.bins import SPECIALS, FeatureBins, Special


@dataclass(frozen=True)
class Sample:
    """One side of a comparison of F features. `coarse` [F, G]: the rows by the groups of the PSI. `tested`
    [F, B]: numeric features by the ordered bins of finite values, others by all bins. `kinds` [F, 3]:
    rows that are present, missing (null, not finite or of a wrong type) and far outside the range, because
    the KS test does not see these shares. `unseen` [F]: outside the range, or with an unlisted category.
    `effect`, `kind_effect` [F]: design effects of `tested` and `kinds`."""

    coarse: Ints
    tested: Ints
    kinds: Ints
    unseen: Ints
    effect: Floats
    kind_effect: Floats

    @cached_property
    def rows(self) -> Ints:
        """[F] all rows."""
        return self.kinds.sum(axis=-1)

    @cached_property
    def present(self) -> Ints:
        """[F] rows that are tested."""
        return self.tested.sum(axis=-1)

    @property
    def null_rates(self) -> Floats:
        return self.kinds[:, 1] / np.maximum(self.rows, 1)

    @property
    def unseen_rates(self) -> Floats:
        return self.unseen / np.maximum(self.rows, 1)


class BinMatrix:
    """Features that are all numeric or all not, as the rows of matrices. Rows are filled up with empty bins,
    on which no statistic depends."""

    def __init__(self, features: Sequence[FeatureBins]) -> None:
        self._features = features
        self.numeric = features[0].numeric
        starts = np.cumsum([0, *(f.size for f in features)])
        self._starts: Ints = starts[:-1]
        nothing = int(starts[-1])  # A bin that is always empty, after those of all features.
        regular = np.array([f.regular for f in features], np.int64)
        self._specials: Ints = (self._starts + regular)[:, None] + np.arange(SPECIALS)
        tested = [ks.order(f) if self.numeric else np.arange(f.size) for f in features]
        self._tested = _filled(list(map(np.add, tested, self._starts)), nothing)
        groups, sizes = zip(*map(psi.coarse_groups, features), strict=True)
        width = max(1, *sizes)
        self._shape = len(features), width + 1
        # Bins without a group go to the last column.
        columns = [np.where(of == size, width, of) for of, size in zip(groups, sizes, strict=True)]
        self._groups: Ints = np.concatenate([of + i * (width + 1) for i, of in enumerate(columns)])
        self.positions = _ends_repeated([f.positions for f in features]) if self.numeric else np.zeros((0, 0))
        """[F, B] places of the tested bins of numeric features on the axis."""
        self.spreads: Floats = np.array([f.reference.stddev for f in features])

    @cached_property
    def reference(self) -> Sample:
        """The training set, whose rows are independent."""
        return self.sample([f.reference_counts for f in self._features])

    def sample(self, counts: Sequence[Ints], blocks: Sequence[Ints] | None = None) -> Sample:
        """The rows of each feature by its bins, counts [size], in blocks [B, size] (None: independent
        rows)."""
        joined = np.append(np.concatenate(counts), 0)
        effect = kind_effect = np.ones(len(self._features))
        if blocks is not None:
            parts = np.concatenate([*blocks, np.zeros((len(blocks[0]), 1), np.int64)], axis=1)
            of_tested = design_effect.of_order if self.numeric else design_effect.of_shares
            effect = of_tested(parts[:, self._tested])
            kind_effect = design_effect.of_shares(self._kinds(parts))
        specials = joined[self._specials]
        outside = specials[:, [Special.BELOW, Special.ABOVE, Special.FAR, Special.UNSEEN]]
        coarse = np.bincount(self._groups, joined[:-1], math.prod(self._shape))
        return Sample(
            coarse=coarse.reshape(self._shape)[:, :-1].astype(np.int64),
            tested=joined[self._tested],
            kinds=self._kinds(joined),
            unseen=outside.sum(axis=1),
            effect=effect,
            kind_effect=kind_effect,
        )

    def _kinds(self, joined: Ints) -> Ints:
        """[..., F, 3] `Sample.kinds` of joined counts [...]."""
        totals = np.add.reduceat(joined[..., :-1], self._starts, axis=-1)
        specials = joined[..., self._specials]
        missing = specials[..., [Special.NULL, Special.NON_FINITE, Special.MALFORMED]].sum(axis=-1)
        far = specials[..., Special.FAR]
        return np.stack([totals - missing - far, missing, far], axis=-1)


def _filled(rows: Sequence[Ints], value: int) -> Ints:
    """Rows of different lengths as a matrix, filled up with a value."""
    found = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for into, row in zip(found, rows, strict=True):
        into[: len(row)] = row
    return found


def _ends_repeated(rows: Sequence[Floats]) -> Floats:
    """Rows of different lengths as a matrix, filled up with the last value of each."""
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows])


@lru_cache(maxsize=64)
def matrices_of(features: tuple[FeatureBins, ...]) -> list[tuple[list[int], BinMatrix]]:
    """Matrices of features of one type with about as many bins, so that at most half of a matrix is empty;
    with each, the numbers of its features. Kept for the same feature objects."""
    alike: dict[tuple[bool, int], list[int]] = {}
    for number, bins in enumerate(features):
        alike.setdefault((bins.numeric, bins.size.bit_length()), []).append(number)
    return [(numbers, BinMatrix([features[n] for n in numbers])) for numbers in alike.values()]
