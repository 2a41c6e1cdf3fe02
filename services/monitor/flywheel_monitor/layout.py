"""What a pane's numbers mean: one vector of counts and one of fixed-point sums per model version.

All of them are integers, so adding panes is exact and in any order gives the same bits. Counts, in order: every
feature's bins, scores, scores of positives, scores of negatives, latencies, sources, failures, rows with features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_monitor.bins import ColumnReference, FeatureBins

SCORE_BINS = 200
"""Equal-width bins of [0, 1], right-open but for the last; a multiple of CALIBRATION_BINS."""
CALIBRATION_BINS = 10
LATENCY_BINS = 128
LATENCY_LOWEST_MS = 0.1
LATENCY_GROWTH = 1.1
"""Latency bin i ends at LATENCY_LOWEST_MS * LATENCY_GROWTH**i: 5 % resolution up to 16 s."""
SOURCES = 5
Z_SCALE = 2.0**16
SCORE_SCALE = 2.0**32
SMALLEST_PROBABILITY = 1e-15


class Sums(IntEnum):
    """Fixed-point sums after those of the features. All but SCORE and SCORE_SQUARED are over labelled rows."""

    SCORE = 0
    SCORE_SQUARED = 1
    LABEL = 2
    LOG_LOSS = 3
    BRIER = 4
    LABELLED_SCORE = 5
    CALIBRATION = 6
    """First of CALIBRATION_BINS sums of scores."""


SUM_COUNT = int(Sums.CALIBRATION) + CALIBRATION_BINS


def log_loss_terms(scores: Floats, labels: Floats) -> Floats:
    """[n] -ln p(label), probabilities kept 1e-15 away from 0 and 1."""
    p = np.clip(scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.where(labels > 0.5, -np.log(p), -np.log1p(-p))


def score_bins(scores: Floats) -> Ints:
    """[n] bin of each finite score; scores outside [0, 1] count in the outermost bins."""
    return np.clip(np.floor(scores * SCORE_BINS), 0, SCORE_BINS - 1).astype(np.int64)


def latency_bins(milliseconds: Floats) -> Ints:
    """[n] bin of each latency."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.ceil(np.log(np.maximum(milliseconds, 1e-9) / LATENCY_LOWEST_MS) / np.log(LATENCY_GROWTH))
    return np.clip(np.nan_to_num(exact, nan=0.0), 0, LATENCY_BINS - 1).astype(np.int64)


def latency_quantile(counts: Ints, q: float) -> float:
    """Upper edge, in ms, of the bin that holds the q-quantile of [LATENCY_BINS] counts; 0 without rows."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    at = int(np.searchsorted(np.cumsum(counts), np.ceil(q * total)))
    return float(LATENCY_LOWEST_MS * LATENCY_GROWTH ** min(at, LATENCY_BINS - 1))


@dataclass(frozen=True)
class Layout:
    """Offsets into the vectors of one model version, fixed by its reference."""

    features: tuple[FeatureBins, ...]

    @classmethod
    def of(cls, columns: Sequence[ColumnReference]) -> Layout:
        return cls(tuple(FeatureBins(c) for c in sorted(columns, key=lambda c: c.name)))

    @cached_property
    def offsets(self) -> dict[str, int]:
        """feature → where its bins begin."""
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
        """Where `Sums` begin."""
        return len(self.numeric)

    @property
    def sums(self) -> int:
        """Length of the sums."""
        return self.common_sums + SUM_COUNT


def fixed(values: Floats, scale: float) -> Ints:
    """[n] values as fixed-point integers."""
    return np.rint(values * scale).astype(np.int64)


@dataclass(frozen=True)
class Window:
    """The sum of some panes: [layout.size] counts, [layout.sums] fixed-point sums, and rows in all."""

    layout: Layout
    counts: Ints
    sums: Ints
    predictions: int

    @classmethod
    def empty(cls, layout: Layout) -> Window:
        return cls(layout, np.zeros(layout.size, np.int64), np.zeros(layout.sums, np.int64), 0)

    def feature(self, bins: FeatureBins) -> Ints:
        """[bins.size] counts."""
        start = self.layout.offsets[bins.name]
        return self.counts[start : start + bins.size]

    def mean_shift(self, name: str) -> float | None:
        """(mean - reference mean) / reference stddev over the finite values of a numeric feature."""
        at = self.layout.numeric.get(name)
        if at is None:
            return None
        bins = next(f for f in self.layout.features if f.name == name)
        if not bins.reference.stddev > 0:
            return None
        counts = self.feature(bins)
        finite = int(counts[: bins.regular].sum() + counts[bins.regular + 2 : bins.regular + 5].sum())
        return float(self.sums[at] / Z_SCALE / finite) if finite else None

    def part(self, start: int, length: int) -> Ints:
        return self.counts[start : start + length]

    @property
    def scores(self) -> Ints:
        return self.part(self.layout.scores, SCORE_BINS)

    @property
    def positives(self) -> Ints:
        return self.part(self.layout.positives, SCORE_BINS)

    @property
    def negatives(self) -> Ints:
        return self.part(self.layout.negatives, SCORE_BINS)

    @property
    def latencies(self) -> Ints:
        return self.part(self.layout.latencies, LATENCY_BINS)

    @property
    def sources(self) -> Ints:
        return self.part(self.layout.sources, SOURCES)

    @property
    def failures(self) -> int:
        return int(self.counts[self.layout.failures])

    @property
    def scored(self) -> int:
        """Rows with a score of the model."""
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


@dataclass(frozen=True)
class LabelledRows:
    """Rows whose label arrived (or, with weight -1, was taken back)."""

    scores: Floats
    labels: Floats
    weights: Ints


def usable_scores(scores: Floats, sources: Ints) -> Mask:
    """[n] rows whose score a model gave: source MODEL (1) or CACHED (2), and finite."""
    return np.isfinite(scores) & ((sources == 1) | (sources == 2))
