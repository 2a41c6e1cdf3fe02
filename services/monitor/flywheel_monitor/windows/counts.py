"""The counts of a window, and what is read from them directly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.windows.bins import FeatureBins, Special
from flywheel_monitor.windows.delays import DELAY_BINS
from flywheel_monitor.windows.histograms import LATENCY_BINS
from flywheel_monitor.windows.layout import SOURCES, Extra, Layout, Sums
from flywheel_monitor.windows.output import CLASS_BINS
from flywheel_monitor.windows.projection import PROJECTION_BINS
from flywheel_monitor.windows.sums import carried, values


@dataclass(frozen=True, eq=False)
class WindowCounts:
    """The sum of some panes: `counts` [layout.size], exact `sums` [layout.sums, LIMBS], and the number of
    predictions. `count_blocks` [B, layout.size] and `sum_blocks` [B, layout.sums, LIMBS] are the same per
    block (`windows.blocks`). Equal is only the same object."""

    layout: Layout
    count_blocks: Ints
    sum_blocks: Ints
    predictions: int

    @property
    def size(self) -> int:
        """Memory in bytes, with that of the sums over the blocks."""
        blocks = len(self.count_blocks) + 1
        return int(self.count_blocks.nbytes + self.sum_blocks.nbytes) * blocks // max(1, blocks - 1) + 512

    @cached_property
    def counts(self) -> Ints:
        return self.count_blocks.sum(axis=0)

    @cached_property
    def sums(self) -> Ints:
        return carried(self.sum_blocks.sum(axis=0))

    def plus(self, other: WindowCounts) -> WindowCounts:
        """The counts of both windows, in the blocks of both."""
        return WindowCounts(
            self.layout,
            np.concatenate([self.count_blocks, other.count_blocks]),
            np.concatenate([self.sum_blocks, other.sum_blocks]),
            self.predictions + other.predictions,
        )

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
        at = self.layout.common_sums + Sums.SCORE
        start, bins = self.layout.scores, self.layout.output.bins
        sums = np.array(values(self.sum_blocks[:, at]), np.float64)
        return sums, self.count_blocks[:, start : start + bins].sum(axis=1)

    def mean_shift(self, name: str) -> float | None:
        """(mean - reference mean) / reference stddev over the finite values of a numeric feature, clipped to
        the reference's range."""
        finite = self._finite.get(name, 0)
        return self._totals[self.layout.numeric[name]] / finite if finite else None

    def moments(self, name: str) -> tuple[float, float] | None:
        """(mean - reference mean, standard deviation) of the finite values of a numeric feature as they are,
        in reference standard deviations; None if they were not counted (layout version 1)."""
        finite = self._finite.get(name, 0)
        if not finite:
            return None
        at = self.layout.numeric[name]
        first = self.layout.moments + 2 * at
        total, squared = self._totals[first : first + 2]
        if squared == 0 and self._totals[at] != 0:
            return None
        return total / finite, math.sqrt(max(0.0, squared / finite - (total / finite) ** 2))

    @cached_property
    def _totals(self) -> list[float]:
        """The sums as numbers."""
        return values(self.sums)

    @cached_property
    def _finite(self) -> dict[str, int]:
        """Numeric feature → finite values, of features whose reference has a standard deviation."""
        found = {}
        for bins in self.layout.features:
            if bins.numeric and bins.reference.stddev > 0:
                start = self.layout.offsets[bins.name] + bins.regular
                below, far = start + Special.BELOW, start + Special.FAR
                found[bins.name] = self._up_to[start] - self._up_to[start - bins.regular]
                found[bins.name] += self._up_to[far + 1] - self._up_to[below]
        return found

    @cached_property
    def _up_to(self) -> list[int]:
        """Rows in all bins of features before each."""
        up_to: list[int] = [0, *np.cumsum(self.counts[: self.layout.feature_bins]).tolist()]
        return up_to

    def _part(self, start: int, length: int) -> Ints:
        return self.counts[start : start + length]

    @property
    def scores(self) -> Ints:
        return self._part(self.layout.scores, self.layout.output.bins)

    @property
    def positives(self) -> Ints:
        return self._part(self.layout.positives, self.layout.output.bins)

    @property
    def negatives(self) -> Ints:
        return self._part(self.layout.negatives, self.layout.output.bins)

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
        return self._totals[self.layout.common_sums + which + offset]

    def counted(self, which: Extra) -> int:
        return int(self.counts[self.layout.extras + which])

    @property
    def right(self) -> tuple[int, int]:
        """Labelled requests in which only the champion, and only the shadow, was right."""
        champion, shadow = self._part(self.layout.right, 2).tolist()
        return champion, shadow

    @property
    def predicted(self) -> Ints:
        """[classes] rows by predicted class."""
        return self._part(self.layout.predicted, self.layout.output.classes)

    @property
    def confusion(self) -> Ints:
        """[classes, classes] labelled rows by true and predicted class."""
        classes = self.layout.output.classes
        return self._part(self.layout.confusion, classes * classes).reshape(classes, classes)

    @property
    def class_bins(self) -> Ints:
        """[classes, CLASS_BINS] rows by the probability of each class."""
        classes = self.layout.output.classes
        return self._part(self.layout.class_bins, classes * CLASS_BINS).reshape(classes, CLASS_BINS)

    def projection_blocks(self) -> Ints:
        """[B, projections, PROJECTION_BINS] rows by each projection of the output, in each block."""
        layout = self.layout
        part = self.count_blocks[:, layout.projections : layout.delays]
        return part.reshape(len(part), layout.projected, PROJECTION_BINS)

    @property
    def label_delays(self) -> Ints:
        """[DELAY_BINS] labels by their delay. Those that were counted before there were any are left out,
        also where they are corrected."""
        return np.maximum(self._part(self.layout.delays, DELAY_BINS), 0)

    def cost_mean(self) -> float | None:
        """Mean cost of the predictions whose cost was measured."""
        n = self.counted(Extra.COSTED)
        return self.total(Sums.COST) / n if n else None

    def score_moments(self) -> tuple[float, float]:
        """(mean, population standard deviation) of the scores; (0, 0) without any."""
        n = self.scored
        if n == 0:
            return 0.0, 0.0
        mean = self.total(Sums.SCORE) / n
        return mean, float(np.sqrt(max(0.0, self.total(Sums.SCORE_SQUARED) / n - mean * mean)))
