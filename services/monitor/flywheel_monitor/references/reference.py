"""What a model version is compared with: the profile of its training set, its held-out metrics, its first
scores.

A reference is fetched from the registry and the feature service once, before the first prediction of the
version is counted, and stored with the counts. While a peer is unavailable the batch waits. A version without
a usable training set is watched too, except for data drift.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flywheel_common.arrays import Floats
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_monitor.windows.output import Output


@dataclass(frozen=True)
class Reference:
    """The training profile and held-out metrics of a version. Without a usable profile `columns` is empty
    and `reason` says why."""

    columns: tuple[ColumnReference, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @cached_property
    def hash(self) -> str:
        """`sha256:…` over the profile, or "" without one."""
        if not self.columns:
            return ""
        text = json.dumps([c.to_json() for c in sorted(self.columns, key=lambda c: c.name)], sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def placed(self, output: Output, outputs: Floats, seed: str) -> Output:
        """The output with its bins placed by the recorded moments of the scores, else by these [n, width]
        first answers. `seed` fixes the directions of projections."""
        mean, stddev = self.metrics.get("score_mean"), self.metrics.get("score_stddev")
        return output.placed(mean, stddev, output.scores(outputs)).projecting(outputs, seed)


@dataclass(frozen=True)
class ScoreReference:
    """Moments of the reference scores over `count` rows (0: unknown, the moments are taken as exact), their
    histogram [Output.bins], the rows by predicted class and the histograms of the projections if known."""

    mean: float
    stddev: float
    count: int = 0
    counts: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    projections: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class QualityReference:
    """Quality of the version on `rows` held-out rows (0: unknown, the figures are taken as exact); None is
    unknown. `labels` is the histogram of the first labels served."""

    auc: float | None = None
    log_loss: float | None = None
    label_mean: float | None = None
    accuracy: float | None = None
    rmse: float | None = None
    labels: tuple[int, ...] = ()
    average_precision: float | None = None
    brier: float | None = None
    calibration_error: float | None = None
    rows: int = 0


def reference_from_profile(columns: Sequence[ColumnReference]) -> Reference:
    """The reference with these columns; one malformed column makes the whole profile unusable."""
    problems = [p for p in (c.problem() for c in columns) if p]
    if problems:
        return Reference(reason=f"the profile is malformed: {'; '.join(problems[:3])}")
    if not columns:
        return Reference(reason="the training set has no profile of the model's features")
    return Reference(columns=tuple(columns))


def score_reference_to_json(reference: ScoreReference) -> dict[str, Any]:
    return {
        "mean": reference.mean,
        "stddev": reference.stddev,
        "count": reference.count,
        "counts": list(reference.counts),
        "classes": list(reference.classes),
        "projections": list(map(list, reference.projections)),
    }


def score_reference_from_json(stored: Mapping[str, Any]) -> ScoreReference:
    return ScoreReference(
        stored["mean"],
        stored["stddev"],
        stored["count"],
        tuple(stored["counts"]),
        tuple(stored.get("classes", ())),
        tuple(map(tuple, stored.get("projections", ()))),
    )
