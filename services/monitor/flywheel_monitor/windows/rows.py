"""Predictions as rows to count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from flywheel_common.arrays import Array, Floats, Ints, Mask
from flywheel_monitor.windows.output import within_limit


class Source(IntEnum):
    """What produced a prediction. Numbers equal `PredictionSource` of the events."""

    UNSPECIFIED = 0
    MODEL = 1
    CACHED = 2
    DEFAULT = 3
    ERROR = 4


def usable_scores(scores: Floats, sources: Ints) -> Mask:
    """[n] rows with a finite score of at most LARGEST_SCORE that a model computed, now or earlier (MODEL or
    CACHED). Labels and score statistics count these rows only."""
    return within_limit(scores) & ((sources == Source.MODEL) | (sources == Source.CACHED))


@dataclass(frozen=True)
class Rows:
    """n predictions of one variant. `outputs` [n, width] are the values of the answers and `scores` their
    scores (`Output.scores`); `failed` marks rows that the model should have predicted and did not; `costs` is
    NaN where none was measured; `features` maps a name to (values, valid), each of length n."""

    event_times: Ints
    scores: Floats
    outputs: Floats
    decisions: Mask
    sources: Ints
    latencies_ms: Floats
    costs: Floats
    failed: Mask
    segments: tuple[str, ...]
    features: Mapping[str, tuple[Array, Mask]]

    def part(self, rows: slice | Mask) -> Rows:
        """Some consecutive rows, or those that a mask selects."""
        if isinstance(rows, slice):
            segments = self.segments[rows]
        else:
            segments = tuple(s for s, keep in zip(self.segments, rows.tolist(), strict=True) if keep)
        return Rows(
            event_times=self.event_times[rows],
            scores=self.scores[rows],
            outputs=self.outputs[rows],
            decisions=self.decisions[rows],
            sources=self.sources[rows],
            latencies_ms=self.latencies_ms[rows],
            costs=self.costs[rows],
            failed=self.failed[rows],
            segments=segments,
            features={name: (values[rows], valid[rows]) for name, (values, valid) in self.features.items()},
        )


@dataclass(frozen=True)
class LabelledRows:
    """n predictions with usable scores and their labels: 0 or 1 (BINARY), the column of the true class
    (MULTICLASS) or a number (REGRESSION). Weight -1 takes a corrected label back. `delays` are the seconds
    from the prediction to the outcome, NaN where unknown."""

    event_times: Ints
    segments: tuple[str, ...]
    scores: Floats
    outputs: Floats
    labels: Floats
    weights: Ints
    delays: Floats | None = None


@dataclass(frozen=True)
class PairedRows:
    """n requests that champion and shadow both answered with usable scores, at the times of the shadow.
    `deltas` is the loss of the shadow minus that of the champion, NaN without a label. `right` is 1 where
    only the shadow was right (REGRESSION: nearer to the label), -1 where only the champion was, else 0.
    `labels_only`: the requests were counted before."""

    event_times: Ints
    segments: tuple[str, ...]
    champion_scores: Floats
    shadow_scores: Floats
    differ: Mask
    deltas: Floats
    right: Ints
    weights: Ints
    labels_only: bool = False
