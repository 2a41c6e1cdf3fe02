"""The counts of a window, and what is read from them directly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.windows.bins import FeatureBins, Special
from flywheel_monitor.windows.histograms import LATENCY_BINS, SCORE_BINS
from flywheel_monitor.windows.layout import SCORE_SCALE, SOURCES, Z_SCALE, Layout, Sums


@dataclass(frozen=True)
class WindowCounts:
    """The sum of some panes: [layout.size] counts, [layout.sums] fixed-point sums, and the number of
    predictions. `count_blocks` [B, layout.size] and `sum_blocks` [B, layout.sums] are the same per block
    (`windows.blocks`)."""

    layout: Layout
    count_blocks: Ints
    sum_blocks: Ints
    predictions: int

    @cached_property
    def counts(self) -> Ints:
        return self.count_blocks.sum(axis=0)

    @cached_property
    def sums(self) -> Ints:
        return self.sum_blocks.sum(axis=0)

    def feature(self, bins: FeatureBins) -> Ints:
        """[bins.size] counts."""
        start = self.layout.offsets[bins.name]
        return self.counts[start : start + bins.size]

    def feature_blocks(self, bins: FeatureBins) -> Ints:
        """[B, bins.size] counts."""
        start = self.layout.offsets[bins.name]
        return self.count_blocks[:, start : start + bins.size]

    def score_blocks(self) -> tuple[Floats, Ints]:
        """Sum and number of the scores in each block, [B] each."""
        sums = self.sum_blocks[:, self.layout.common_sums + Sums.SCORE] / SCORE_SCALE
        start = self.layout.scores
        return sums, self.count_blocks[:, start : start + SCORE_BINS].sum(axis=1)

    def mean_shift(self, name: str) -> float | None:
        """(mean - reference mean) / reference stddev over the finite values of a numeric feature."""
        at = self.layout.numeric.get(name)
        if at is None:
            return None
        bins = next(f for f in self.layout.features if f.name == name)
        if not bins.reference.stddev > 0:
            return None
        counts = self.feature(bins)
        outside = counts[bins.regular + Special.BELOW : bins.regular + Special.FAR + 1]
        finite = int(counts[: bins.regular].sum() + outside.sum())
        return float(self.sums[at] / Z_SCALE / finite) if finite else None

    def _part(self, start: int, length: int) -> Ints:
        return self.counts[start : start + length]

    @property
    def scores(self) -> Ints:
        return self._part(self.layout.scores, SCORE_BINS)

    @property
    def positives(self) -> Ints:
        return self._part(self.layout.positives, SCORE_BINS)

    @property
    def negatives(self) -> Ints:
        return self._part(self.layout.negatives, SCORE_BINS)

    @property
    def latencies(self) -> Ints:
        return self._part(self.layout.latencies, LATENCY_BINS)

    @property
    def sources(self) -> Ints:
        """[SOURCES] predictions by `Source`."""
        return self._part(self.layout.sources, SOURCES)

    @property
    def failures(self) -> int:
        """Predictions that the model should have made and did not."""
        return int(self.counts[self.layout.failures])

    @property
    def scored(self) -> int:
        """Rows with a usable score."""
        return int(self.scores.sum())

    @property
    def labelled(self) -> int:
        return int(self.positives.sum() + self.negatives.sum())

    def total(self, which: Sums, offset: int = 0) -> float:
        return float(self.sums[self.layout.common_sums + which + offset]) / SCORE_SCALE

    def score_moments(self) -> tuple[float, float]:
        """(mean, population standard deviation) of the scores; (0, 0) without any."""
        n = self.scored
        if n == 0:
            return 0.0, 0.0
        mean = self.total(Sums.SCORE) / n
        return mean, float(np.sqrt(max(0.0, self.total(Sums.SCORE_SQUARED) / n - mean * mean)))
