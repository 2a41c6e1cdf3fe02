"""Decoded events: answers and outcomes in columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from flywheel_common.arrays import Array, Floats, Ints, Mask


class Role(IntEnum):
    """Numbers equal `PredictionRole` of the events."""

    UNSPECIFIED = 0
    CHAMPION = 1
    CHALLENGER = 2
    SHADOW = 3


class Source(IntEnum):
    """Numbers equal `PredictionSource` of the events."""

    UNSPECIFIED = 0
    MODEL = 1
    CACHED = 2
    DEFAULT = 3
    ERROR = 4


@dataclass(frozen=True)
class VariantKey:
    """What the rows of a batch share."""

    model: str
    model_version: str
    release: str
    rollout: str
    role: Role


@dataclass(frozen=True)
class PredictionColumns:
    """A `PredictionBatch`, n rows. `failed`: the model should have answered and did not, so the row is an error or a
    fallback with a reason. `segments` has n entries. `payload` is the batch as it came, for the archive."""

    key: VariantKey
    ids: list[str]
    event_times: Ints
    scores: Floats
    decisions: Mask
    sources: Ints
    latencies_ms: Floats
    failed: Mask
    segments: tuple[str, ...]
    features: Mapping[str, tuple[Array, Mask]]
    payload: bytes

    @property
    def shadow(self) -> bool:
        return self.key.role == Role.SHADOW


@dataclass(frozen=True)
class OutcomeColumns:
    """An `OutcomeBatch`, n rows. `name` is `label` for the value that the model predicts."""

    model: str
    name: str
    prediction_ids: list[str]
    outcome_ids: list[str]
    event_times: Ints
    values: Floats


@dataclass(frozen=True)
class Waiting:
    """Batches of a model that wait for the archive: their rows, and the wall time since the newest and the oldest came."""

    model: str
    rows: int
    idle_seconds: float
    age_seconds: float


@dataclass(frozen=True)
class Segment:
    """Some batches of a model that are archived together."""

    id: int
    model: str


LABEL = "label"


@dataclass(frozen=True)
class IngestCounts:
    """What was counted: served answers, outcomes (one per labelled prediction), labels whose prediction is not known (yet), and rows
    that were there already or came to correct a label."""

    predictions: int = 0
    outcomes: int = 0
    orphans: int = 0
    duplicates: int = 0


def pack_kept(kept: Mask) -> bytes:
    """A bitmap of rows; empty when all are kept."""
    return b"" if bool(kept.all()) else np.packbits(kept, bitorder="little").tobytes()


def unpack_kept(packed: bytes, rows: int) -> Mask:
    """[rows] from `pack_kept`."""
    if not packed:
        return np.ones(rows, np.bool_)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=rows, bitorder="little").astype(np.bool_)
