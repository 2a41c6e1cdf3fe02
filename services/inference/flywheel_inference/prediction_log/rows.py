"""Rows of the prediction log, in columns, and records encoded from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel_common.scoring.feature_block import FeatureColumn
from flywheel_inference.releases.release import FeatureSetContract, ReleaseSpec
from flywheel_inference.releases.rollout_step import RolloutStep
from flywheel_inference.requests.request import RoutedRequest

Group = tuple[str, str, RolloutStep, int, str, bool, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class LogRows:
    """Answers of one release in one role. `values` [rows, width]: calibrated output, NaN for a row without
    one. The other arrays are [rows]; latencies in milliseconds, costs in the release's unit (None: it has
    none).

    `features` None: no features were read. `reasons` and `not_yet_valid` are empty when no row has one.
    `applied` and `not_yet_valid`: see `FeatureBlock`.
    """

    spec: ReleaseSpec
    contract: FeatureSetContract
    step: RolloutStep
    role: int
    feature_set: str
    requests: list[RoutedRequest]
    features: tuple[FeatureColumn, ...] | None
    values: npt.NDArray[np.float64]
    decisions: npt.NDArray[np.bool_]
    sources: npt.NDArray[np.uint8]
    latencies_ms: npt.NDArray[np.float32]
    reasons: list[str]
    costs: npt.NDArray[np.float32] | None = None
    applied: tuple[FeatureColumn, ...] = ()
    not_yet_valid: Sequence[str] = ()

    @property
    def size_bytes(self) -> int:
        """Approximate memory: the requests as sent, the features, and the answers."""
        sent = sum(request.call.size_bytes for request in self.requests)
        features = sum(column.size_bytes for column in self.features or ())
        return sent + features + int(self.values.nbytes)

    @property
    def group(self) -> Group:
        """Rows with equal groups can share a record."""
        applied = tuple(column.name for column in self.applied)
        return *self.spec.key, self.step, self.role, self.feature_set, self.features is None, applied


@dataclass(frozen=True, slots=True)
class LogRecord:
    """`rows` rows, encoded for one partition."""

    partition: int
    value: bytes
    rows: int
