"""The layout of a pane: one vector of counts and one of fixed-point sums per model version.

All numbers are integers, so that adding panes is exact and any order gives the same bits. The counts, in
order: the bins of every feature, scores, scores of positives, scores of negatives, latencies, sources,
failures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from flywheel_common.arrays import Floats, Ints
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins
from flywheel_monitor.windows.histograms import CALIBRATION_BINS, LATENCY_BINS, SCORE_BINS
from flywheel_monitor.windows.rows import Source

SOURCES = len(Source)
Z_SCALE = 2.0**16
SCORE_SCALE = 2.0**32


class Sums(IntEnum):
    """Fixed-point sums that follow those of the features. All but SCORE and SCORE_SQUARED cover labelled
    rows only."""

    SCORE = 0
    SCORE_SQUARED = 1
    LABEL = 2
    LOG_LOSS = 3
    BRIER = 4
    LABELLED_SCORE = 5
    CALIBRATION = 6
    """First of CALIBRATION_BINS sums of scores."""


SUM_COUNT = int(Sums.CALIBRATION) + CALIBRATION_BINS


@dataclass(frozen=True)
class Layout:
    """Offsets into the vectors of one model version, fixed by its reference."""

    features: tuple[FeatureBins, ...]

    @classmethod
    def of(cls, columns: Sequence[ColumnReference]) -> Layout:
        return cls(tuple(FeatureBins(c) for c in sorted(columns, key=lambda c: c.name)))

    @cached_property
    def offsets(self) -> dict[str, int]:
        """feature → index of its first bin."""
        starts = np.concatenate([[0], np.cumsum([f.size for f in self.features])]) if self.features else [0]
        return {f.name: int(starts[i]) for i, f in enumerate(self.features)}

    @cached_property
    def feature_bins(self) -> int:
        return sum(f.size for f in self.features)

    @property
    def scores(self) -> int:
        return self.feature_bins

    @property
    def positives(self) -> int:
        return self.scores + SCORE_BINS

    @property
    def negatives(self) -> int:
        return self.positives + SCORE_BINS

    @property
    def latencies(self) -> int:
        return self.negatives + SCORE_BINS

    @property
    def sources(self) -> int:
        return self.latencies + LATENCY_BINS

    @property
    def failures(self) -> int:
        return self.sources + SOURCES

    @property
    def size(self) -> int:
        """Length of the counts."""
        return self.failures + 1

    @cached_property
    def numeric(self) -> dict[str, int]:
        """numeric feature → index of its sum."""
        return {name: i for i, name in enumerate(f.name for f in self.features if f.numeric)}

    @property
    def common_sums(self) -> int:
        """Index of the first of `Sums`."""
        return len(self.numeric)

    @property
    def sums(self) -> int:
        """Length of the sums."""
        return self.common_sums + SUM_COUNT


def fixed(values: Floats, scale: float) -> Ints:
    """[n] values as fixed-point integers."""
    return np.rint(values * scale).astype(np.int64)
