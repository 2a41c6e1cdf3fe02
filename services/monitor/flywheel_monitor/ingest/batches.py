"""Decoded events: predictions and outcomes in columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from flywheel_common.arrays import Array, Floats, Ints, Mask
from flywheel_monitor.windows.output import Output
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

    @property
    def named(self) -> bool:
        """Whether a named variant routed the rows, not a rollout."""
        return "/variants/" in self.rollout

    def shadows(self, champion: VariantKey) -> bool:
        """Whether this is a shadow of the champion: in its step of the rollout. A named variant shadows every
        champion, whatever routed its request."""
        step = champion.rollout == self.rollout and champion.generation == self.generation
        return self.role == Role.SHADOW and champion.role == Role.CHAMPION and (self.named or step)


@dataclass(frozen=True)
class PredictionColumns:
    """A `PredictionBatch` of n rows. `outputs` [n, width] are the values of the answers, `scores` their
    scores (`Output.scores`). `failed` marks rows that the model should have predicted and did not: errors,
    and fallbacks with an error reason. `costs` is NaN where none was measured. `segments` and `subjects`
    have n entries. `payload` is the encoded batch, for the archive."""

    key: VariantKey
    output: Output
    ids: list[str]
    event_times: Ints
    outputs: Floats
    scores: Floats
    decisions: Mask
    sources: Ints
    latencies_ms: Floats
    costs: Floats
    failed: Mask
    segments: tuple[str, ...]
    subjects: tuple[str, ...]
    features: Mapping[str, tuple[Array, Mask]]
    payload: bytes

    @property
    def shadow(self) -> bool:
        return self.key.role == Role.SHADOW


@dataclass(frozen=True)
class OutcomeColumns:
    """An `OutcomeBatch` of n rows. `name` is LABEL for the value that the model predicts. `class_names` has n
    entries; where one is not empty, the value is NaN."""

    model: str
    name: str
    prediction_ids: list[str]
    outcome_ids: list[str]
    event_times: Ints
    values: Floats
    class_names: tuple[str, ...]


LABEL = "label"


@dataclass(frozen=True)
class IngestCounts:
    """Totals of what was ingested: served predictions, outcomes (one per labelled prediction), orphans
    (labels without a prediction so far), duplicates (repeated rows, and labels that correct an earlier one),
    and served predictions that were too late for a judgement of their window (`windows.lateness`)."""

    predictions: int = 0
    outcomes: int = 0
    orphans: int = 0
    duplicates: int = 0
    late: int = 0


def rows_of(batch: PredictionColumns, keep: Mask) -> Rows:
    """The rows of a batch that `keep` selects."""
    return Rows(
        event_times=batch.event_times[keep],
        scores=batch.scores[keep],
        outputs=batch.outputs[keep],
        decisions=batch.decisions[keep],
        sources=batch.sources[keep],
        latencies_ms=batch.latencies_ms[keep],
        costs=batch.costs[keep],
        failed=batch.failed[keep],
        segments=tuple(s for s, k in zip(batch.segments, keep.tolist(), strict=True) if k),
        features={name: (values[keep], valid[keep]) for name, (values, valid) in batch.features.items()},
    )
