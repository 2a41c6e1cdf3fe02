"""TODO docstring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel_inference.models.feature_block import FeatureColumn
from flywheel_inference.releases.release import Contract, ReleaseSpec
from flywheel_inference.requests.request import Item

Group = tuple[str, str, int, str, bool, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class LogRows:
    """Answers of one release in one role. `features` None: none were read. Arrays are [rows]; latencies in ms;
    `reasons` is empty when no row has one; `applied` is that of the FeatureBlock."""

    spec: ReleaseSpec
    contract: Contract
    rollout: str
    role: int
    feature_set: str
    items: list[Item]
    features: tuple[FeatureColumn, ...] | None
    scores: npt.NDArray[np.float64]
    decisions: npt.NDArray[np.bool_]
    sources: npt.NDArray[np.uint8]
    latencies_ms: npt.NDArray[np.float32]
    reasons: list[str]
    applied: tuple[FeatureColumn, ...] = ()

    @property
    def group(self) -> Group:
        """Rows of one group can share a batch."""
        applied = tuple(column.name for column in self.applied)
        return self.spec.name, self.rollout, self.role, self.feature_set, self.features is None, applied


@dataclass(frozen=True, slots=True)
class LogRecord:
    """`rows` rows, encoded for one partition."""

    partition: int
    value: bytes
    rows: int
