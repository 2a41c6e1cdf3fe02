"""The counts of a window, and what is read from them directly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.windows.bins import FeatureBins, Special
from flywheel_monitor.windows.histograms import LATENCY_BINS
from flywheel_monitor.windows.layout import SOURCES, Extra, Layout, Sums
from flywheel_monitor.windows.output import CLASS_BINS
from flywheel_monitor.windows.sums import carried, value


@dataclass(frozen=True)
class WindowCounts:
    """The sum of some panes: [layout.size] counts, [layout.sums, LIMBS] exact sums, and the number of
    predictions."""

    layout: Layout
    counts: Ints
    sums: Ints
    predictions: int

    def plus(self, other: WindowCounts) -> WindowCounts:
        """The counts of both windows."""
        return WindowCounts(
            self.layout,
            self.counts + other.counts,
            carried(self.sums + other.sums),
            self.predictions + other.predictions,
        )

    def feature(self, bins: FeatureBins) -> Ints:
        """[bins.size] counts."""
        start = self.layout.offsets[bins.name]
        return self.counts[start : start + bins.size]

    def mean_shift(self, name: str) -> float | None:
        """(mean - reference mean) / reference stddev over the finite values of a numeric feature."""
        finite, total, _ = self._standardized(name)
        return total / finite if finite else None

    def spread(self, name: str) -> float | None:
        """The standard deviation of the finite values of a numeric feature in those of the reference; None if
        their squares were not counted (layout version 1)."""
        finite, total, squared = self._standardized(name)
        if not finite or (squared == 0 and total != 0):
            return None
        return math.sqrt(max(0.0, squared / finite - (total / finite) ** 2))

    def _standardized(self, name: str) -> tuple[int, float, float]:
        """(finite values, sum and sum of squares of their distances from the reference's mean in its standard
        deviations); no values for a feature without a standard deviation."""
        at = self.layout.numeric.get(name)
        if at is None:
            return 0, 0.0, 0.0
        bins = next(f for f in self.layout.features if f.name == name)
        if not bins.reference.stddev > 0:
            return 0, 0.0, 0.0
        counts = self.feature(bins)
        outside = counts[bins.regular + Special.BELOW : bins.regular + Special.FAR + 1]
        finite = int(counts[: bins.regular].sum() + outside.sum())
        return finite, value(self.sums[at]), value(self.sums[self.layout.squares + at])

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
        return value(self.sums[self.layout.common_sums + which + offset])

    def counted(self, which: Extra) -> int:
        return int(self.counts[self.layout.extras + which])

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
