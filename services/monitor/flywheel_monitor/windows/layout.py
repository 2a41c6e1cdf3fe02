"""The layout of a pane: one vector of counts and one of exact sums per model version.

All numbers are integers, so that adding panes is exact and any order gives the same bits. The counts, in
order: the bins of every feature, scores, scores with a positive label, scores with another label, latencies,
sources, failures (layout version 1 ends here), `Extra`, and for MULTICLASS the predicted classes, the
confusion of true and predicted classes, and the bins of each class's probability (version 2 ends here), which
of champion and shadow was right (version 3 ends here), for VECTOR the bins of each projection (version 4
ends here), and the delays of the labels.

What "positive" means follows the kind: BINARY the label 1, MULTICLASS a correct class; for REGRESSION the
labels themselves are counted in the two blocks, apart for scores above and not above them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import IntEnum
from functools import cached_property

import numpy as np

from flywheel_common.probability import CALIBRATION_BINS
from flywheel_common.projections import PROJECTIONS
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins
from flywheel_monitor.windows.delays import DELAY_BINS
from flywheel_monitor.windows.histograms import LATENCY_BINS
from flywheel_monitor.windows.numeric_columns import NumericColumns
from flywheel_monitor.windows.output import CLASS_BINS, Output
from flywheel_monitor.windows.projection import PROJECTION_BINS
from flywheel_monitor.windows.rows import Source

SOURCES = len(Source)


class Sums(IntEnum):
    """Sums that follow those of the features. SCORE, SCORE_SQUARED and COST cover all rows, PAIR_… the
    requests that champion and shadow both answered, the others labelled rows. The loss is the log-loss, for
    REGRESSION the squared error."""

    SCORE = 0
    SCORE_SQUARED = 1
    LABEL = 2
    LOSS = 3
    BRIER = 4
    LABELLED_SCORE = 5
    CALIBRATION = 6
    """First of CALIBRATION_BINS sums of scores."""
    LOSS_SQUARED = CALIBRATION + CALIBRATION_BINS
    ABSOLUTE_ERROR = LOSS_SQUARED + 1
    LABEL_SQUARED = LOSS_SQUARED + 2
    COST = LOSS_SQUARED + 3
    PAIR_CHAMPION_SCORE = LOSS_SQUARED + 4
    PAIR_CHAMPION_SQUARED = LOSS_SQUARED + 5
    PAIR_SHADOW_SCORE = LOSS_SQUARED + 6
    PAIR_LOSS_DELTA = LOSS_SQUARED + 7
    """Loss of the shadow minus that of the champion."""
    PAIR_LOSS_DELTA_SQUARED = LOSS_SQUARED + 8


SUM_COUNT = int(Sums.PAIR_LOSS_DELTA_SQUARED) + 1


class Extra(IntEnum):
    """Counts after those of layout version 1."""

    UNUSABLE = 0
    """Answers of a model without a usable score."""
    DECISIONS = 1
    """Rows with the decision 1."""
    COSTED = 2
    """Rows with a measured cost."""
    PAIRED = 3
    """Requests that champion and shadow both answered with a usable score."""
    DISAGREED = 4
    """Those of them with different decisions (MULTICLASS: classes)."""
    PAIRS_LABELLED = 5


@dataclass(frozen=True)
class Layout:
    """Offsets into the vectors of one model version, fixed by its reference and its output."""

    features: tuple[FeatureBins, ...]
    output: Output = dataclass_field(default_factory=Output)

    @classmethod
    def of(cls, columns: Sequence[ColumnReference], output: Output | None = None) -> Layout:
        bins = tuple(FeatureBins(c) for c in sorted(columns, key=lambda c: c.name))
        return cls(bins, output or Output())

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
        return self.scores + self.output.bins

    @property
    def negatives(self) -> int:
        return self.positives + self.output.bins

    @property
    def latencies(self) -> int:
        return self.negatives + self.output.bins

    @property
    def sources(self) -> int:
        return self.latencies + LATENCY_BINS

    @property
    def failures(self) -> int:
        return self.sources + SOURCES

    @property
    def extras(self) -> int:
        """Index of the first of `Extra`."""
        return self.failures + 1

    @property
    def predicted(self) -> int:
        """[classes] rows by predicted class."""
        return self.extras + len(Extra)

    @property
    def confusion(self) -> int:
        """[classes, classes] labelled rows by true and predicted class."""
        return self.predicted + self.output.classes

    @property
    def class_bins(self) -> int:
        """[classes, CLASS_BINS] rows by the probability of each class."""
        return self.confusion + self.output.classes**2

    @property
    def right(self) -> int:
        """[2] labelled requests in which only the champion, and only the shadow, was right (`PairedRows`)."""
        return self.class_bins + self.output.classes * CLASS_BINS

    @property
    def projections(self) -> int:
        """[projected, PROJECTION_BINS] rows by each projection of the output."""
        return self.right + 2

    @property
    def projected(self) -> int:
        """Number of projections."""
        return PROJECTIONS if self.output.projections is not None else 0

    @property
    def delays(self) -> int:
        """[DELAY_BINS] labels by the time from the prediction to the outcome."""
        return self.projections + self.projected * PROJECTION_BINS

    @property
    def size(self) -> int:
        """Length of the counts."""
        return self.delays + DELAY_BINS

    @cached_property
    def numeric(self) -> dict[str, int]:
        """numeric feature → index of its sum."""
        return {name: i for i, name in enumerate(f.name for f in self.features if f.numeric)}

    @cached_property
    def numeric_columns(self) -> NumericColumns:
        """The numeric features, in the order of their sums."""
        return NumericColumns(tuple(f for f in self.features if f.numeric))

    @cached_property
    def vector_projections(self) -> tuple[ColumnReference, ...]:
        """The features that are projections of vectors."""
        return tuple(f.reference for f in self.features if f.reference.vector)

    @property
    def common_sums(self) -> int:
        """Index of the first of `Sums`."""
        return len(self.numeric)

    @property
    def sums(self) -> int:
        """Length of the sums."""
        return self.moments + 2 * len(self.numeric)

    @property
    def moments(self) -> int:
        """Index of the first of the sums and sums of squares of the numeric features, without clipping."""
        return self.common_sums + SUM_COUNT
