"""Results of scoring: a batch, and one row of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Array, Floats, Mask
from flywheel_common.errors import FlywheelError
from flywheel_common.scoring.feature_block import FeatureBlock


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """A batch that the model scored. `values` [rows, width]: calibrated output; the other arrays are [rows];
    times in milliseconds. `flagged`: a feature of the row was not PRESENT."""

    block: FeatureBlock
    values: Floats
    scores: Floats
    decisions: npt.NDArray[np.bool_]
    flagged: Mask
    features_ms: float
    model_ms: float

    @property
    def finite(self) -> Mask:
        """[rows]: every value of the row is a finite number."""
        if self.values.shape[1] == 1:
            return np.isfinite(self.values[:, 0])
        found: Mask = np.logical_and.reduce(np.isfinite(self.values), axis=1)
        return found

    def take(self, rows: Array) -> ScoredBatch:
        """The rows at these indices."""
        return ScoredBatch(
            self.block.take(rows),
            self.values[rows],
            self.scores[rows],
            self.decisions[rows],
            self.flagged[rows],
            self.features_ms,
            self.model_ms,
        )


@dataclass(frozen=True, slots=True)
class ScoredRequests:
    """Requests, or rows of features, that were scored together.

    `batch` holds those with the indices `rows`, in that order; None: none was scored. `errors`: index of
    one that failed alone → why.
    """

    batch: ScoredBatch | None
    rows: Array
    errors: Mapping[int, FlywheelError]


@dataclass(frozen=True, slots=True)
class Scored:
    """Row `row` of a scored batch. `queue_ms`: time from the request to the start of its batch."""

    score: float
    decision: bool
    batch: ScoredBatch
    row: int
    flagged: bool
    queue_ms: float

    @property
    def values(self) -> list[float]:
        """The calibrated output of the row."""
        found: list[float] = self.batch.values[self.row].tolist()
        return found
