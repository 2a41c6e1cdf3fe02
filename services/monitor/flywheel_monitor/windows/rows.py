"""Predictions as rows to count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from flywheel_common.arrays import Array, Floats, Ints, Mask


class Source(IntEnum):
    """What produced a prediction. Numbers equal `PredictionSource` of the events."""

    UNSPECIFIED = 0
    MODEL = 1
    CACHED = 2
    DEFAULT = 3
    ERROR = 4


def usable_scores(scores: Floats, sources: Ints) -> Mask:
    """[n] rows with a finite score that a model computed, now or earlier (MODEL or CACHED). Labels and score
    statistics count these rows only."""
    return np.isfinite(scores) & ((sources == Source.MODEL) | (sources == Source.CACHED))


@dataclass(frozen=True)
class Rows:
    """n predictions of one model version. `failed` marks rows that the model should have predicted and did
    not; `features` maps a name to (values, valid), each of length n."""

    event_times: Ints
    scores: Floats
    sources: Ints
    latencies_ms: Floats
    failed: Mask
    segments: tuple[str, ...]
    features: Mapping[str, tuple[Array, Mask]]
    shadow: bool
