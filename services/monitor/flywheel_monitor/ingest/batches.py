"""Decoded events: predictions and outcomes in columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from flywheel_common.arrays import Array, Floats, Ints, Mask
from flywheel_monitor.windows.rows import Rows


class Role(IntEnum):
    """The role of a version in a rollout. Numbers equal `PredictionRole` of the events."""

    UNSPECIFIED = 0
    CHAMPION = 1
    CHALLENGER = 2
    SHADOW = 3


@dataclass(frozen=True)
class VariantKey:
    """The variant that all rows of a batch belong to. `generation` of the routing: the step of the
    rollout."""

    model: str
    model_version: str
    release: str
    rollout: str
    role: Role
    generation: int = 0


@dataclass(frozen=True)
class PredictionColumns:
    """A `PredictionBatch` of n rows. `failed` marks rows that the model should have predicted and did not:
    errors, and fallbacks with an error reason. `segments` has n entries. `payload` is the encoded batch,
    for the archive."""

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
    """An `OutcomeBatch` of n rows. `name` is LABEL for the value that the model predicts."""

    model: str
    name: str
    prediction_ids: list[str]
    outcome_ids: list[str]
    event_times: Ints
    values: Floats


LABEL = "label"


@dataclass(frozen=True)
class IngestCounts:
    """Totals of what was ingested: served predictions, outcomes (one per labelled prediction), orphans
    (labels without a prediction so far), and duplicates (repeated rows, and labels that correct an earlier
    one)."""

    predictions: int = 0
    outcomes: int = 0
    orphans: int = 0
    duplicates: int = 0


def rows_of(batch: PredictionColumns, keep: Mask) -> Rows:
    """The rows of a batch that `keep` selects."""
    rows = Rows(
        batch.event_times,
        batch.scores,
        batch.sources,
        batch.latencies_ms,
        batch.failed,
        batch.segments,
        batch.features,
        batch.shadow,
    )
    if bool(keep.all()):
        return rows
    return replace(
        rows,
        event_times=rows.event_times[keep],
        scores=rows.scores[keep],
        sources=rows.sources[keep],
        latencies_ms=rows.latencies_ms[keep],
        failed=rows.failed[keep],
        segments=tuple(s for s, k in zip(rows.segments, keep.tolist(), strict=True) if k),
        features={name: (values[keep], valid[keep]) for name, (values, valid) in rows.features.items()},
    )
