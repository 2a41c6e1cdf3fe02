"""Decoded events: predictions and outcomes in columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np

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


class EncodedBatch(NamedTuple):
    """An encoded `PredictionBatch` and the number of its rows."""

    payload: bytes
    rows: int


@dataclass(frozen=True)
class PredictionColumns:
    """The n rows of one `PredictionBatch`, or of several ones with equal key and output.

    `outputs` [n, width] are the values of the answers, `scores` their scores (`Output.scores`). `failed`
    marks rows that the model should have predicted and did not: errors, and fallbacks with an error reason.
    `costs` is NaN where none was measured. `segments` and `subjects` have n entries. `records` are the
    batches, in order, for the archive; `arrivals` [n] is the place of each row's record among those of the
    transaction."""

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
    records: tuple[EncodedBatch, ...]
    arrivals: Ints

    @property
    def shadow(self) -> bool:
        return self.key.role == Role.SHADOW

    def first_record(self) -> PredictionColumns:
        """The same key and output, with the scores and outputs of the first record alone: the size of a
        poll must not change what is derived from the first batch of a version."""
        mine = self.arrivals == self.arrivals[:1]
        return replace(self, scores=self.scores[mine], outputs=self.outputs[mine])

    def kept_records(self, new: Mask) -> Iterator[tuple[EncodedBatch, Mask]]:
        """The records with new rows, and which of their rows are new."""
        start = 0
        for record in self.records:
            mask = new[start : start + record.rows]
            start += record.rows
            if mask.any():
                yield record, mask


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


def merged(batches: Sequence[PredictionColumns]) -> list[PredictionColumns]:
    """The same rows in as few batches as possible: one for each key, output and set of feature columns, in
    order of their first rows."""
    groups: dict[object, list[PredictionColumns]] = {}
    for batch in batches:
        columns = tuple((name, v.dtype.kind, v.shape[1:]) for name, (v, _) in batch.features.items())
        groups.setdefault((batch.key, batch.output, columns), []).append(batch)
    return [_merged(group) for group in groups.values()]


def _merged(batches: Sequence[PredictionColumns]) -> PredictionColumns:
    first = batches[0]
    if len(batches) == 1:
        return first

    def joined(name: str) -> Array:
        return np.concatenate([getattr(b, name) for b in batches])

    return PredictionColumns(
        key=first.key,
        output=first.output,
        ids=[i for b in batches for i in b.ids],
        event_times=joined("event_times"),
        outputs=joined("outputs"),
        scores=joined("scores"),
        decisions=joined("decisions"),
        sources=joined("sources"),
        latencies_ms=joined("latencies_ms"),
        costs=joined("costs"),
        failed=joined("failed"),
        segments=tuple(s for b in batches for s in b.segments),
        subjects=tuple(s for b in batches for s in b.subjects),
        features={
            name: (
                np.concatenate([b.features[name][0] for b in batches]),
                np.concatenate([b.features[name][1] for b in batches]),
            )
            for name in first.features
        },
        records=tuple(r for b in batches for r in b.records),
        arrivals=joined("arrivals"),
    )


def rows_of(batch: PredictionColumns, keep: Mask) -> Rows:
    """The rows of a batch that `keep` selects."""
    rows = Rows(
        event_times=batch.event_times,
        scores=batch.scores,
        outputs=batch.outputs,
        decisions=batch.decisions,
        sources=batch.sources,
        latencies_ms=batch.latencies_ms,
        costs=batch.costs,
        failed=batch.failed,
        segments=batch.segments,
        features=batch.features,
    )
    return rows if keep.all() else rows.part(keep)
