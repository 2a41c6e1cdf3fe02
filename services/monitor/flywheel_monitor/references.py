"""What a model version is compared with: the profile of its training set and its held-out metrics.

Asked of the registry and the feature service once, when the first prediction of the version arrives, then kept with the
counts. While a peer is down the batch waits; a version that has no usable training set is watched all the same, without
data drift.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from flywheel_monitor.bins import ColumnReference
from flywheel_monitor.layout import Layout
from flywheel_monitor.performance import QualityReference
from flywheel_monitor.score_shift import ScoreReference


@dataclass(frozen=True)
class Reference:
    """`columns` is empty when there is no usable profile; `reason` then says why."""

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


class ReferenceSource(Protocol):
    """Where references come from. `fetch` is read only and may be repeated; it raises a retryable FlywheelError while a
    peer does not answer, and answers a Reference without columns for a version that has no usable training set."""

    async def fetch(self, model_version: str) -> Reference: ...


@dataclass(frozen=True)
class WatchedVersion:
    """A model version as the monitor stores it."""

    id: int
    name: str
    model_id: int
    model: str
    reference: Reference
    layout: Layout
    first_window: ScoreReference | None = None

    @property
    def quality_reference(self) -> QualityReference:
        metrics = self.reference.metrics
        return QualityReference(metrics.get("auc"), metrics.get("log_loss"), metrics.get("label_mean"))

    @property
    def score_reference(self) -> ScoreReference | None:
        """Moments that the trainer recorded, else those of the first window served; the histogram is always the latter's."""
        metrics = self.reference.metrics
        counts = self.first_window.counts if self.first_window else ()
        if "score_mean" in metrics and metrics.get("score_stddev", 0.0) > 0:
            return ScoreReference(
                metrics["score_mean"], metrics["score_stddev"], int(metrics.get("rows", 0)), counts
            )
        return self.first_window


def usable(columns: Sequence[ColumnReference]) -> Reference:
    """The reference made of a profile's columns; one malformed column makes the profile unusable."""
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
    }


def score_reference_from_json(stored: Mapping[str, Any]) -> ScoreReference:
    return ScoreReference(stored["mean"], stored["stddev"], stored["count"], tuple(stored["counts"]))
