"""The comparison of challenger and champion that the monitor provides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.rollouts.step_verdict import StepMetric, StepVerdict

BOUNDED = {
    StepMetric.LOSS_DELTA: "log_loss_delta",
    StepMetric.ERROR_RATE: "challenger.error_rate",
    StepMetric.P99_MS: "challenger.latency_p99_ms",
    StepMetric.SCORE_SHIFT: "score_shift",
}
"""Metric → its name in the values of evidence; the bounds of verdicts have it with `_lower` and `_upper`."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The statistics of one side of a comparison."""

    predictions: int = 0
    labelled: int = 0
    error_rate: float = 0.0
    latency_p99_ms: float = 0.0
    score_mean: float = 0.0
    score_stddev: float = 0.0
    log_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Challenger against champion in one step, and the monitor's verdicts on the limits of the step.

    The delta is the challenger's mean log-loss minus the champion's; the score shift is in standard
    deviations of the champion's scores. `covered_from` and `covered_until` are the event times that enough
    predictions support: single predictions with wrong times do not move them.
    """

    champion: Variant = Variant()
    challenger: Variant = Variant()
    covered_from: datetime | None = None
    covered_until: datetime | None = None
    labelled: int = 0
    log_loss_delta: float = 0.0
    score_shift: float = 0.0
    verdicts: Mapping[StepMetric, StepVerdict] = field(default_factory=dict)
    experiment: ExperimentVerdict | None = None

    @property
    def bake_seconds(self) -> float:
        """The event time that the predictions cover."""
        if self.covered_from is None or self.covered_until is None:
            return 0.0
        return (self.covered_until - self.covered_from).total_seconds()

    def values(self) -> dict[str, float]:
        """Return the numbers by name, as stored in evidence, without infinite bounds."""
        numbers: dict[str, float] = {
            "labelled": self.labelled,
            "bake_seconds": self.bake_seconds,
            "log_loss_delta": self.log_loss_delta,
            "score_shift": self.score_shift,
        }
        for metric, found in self.verdicts.items():
            bounds = {f"{BOUNDED[metric]}_lower": found.lower, f"{BOUNDED[metric]}_upper": found.upper}
            numbers |= {name: bound for name, bound in bounds.items() if bound is not None}
        for side, variant in (("champion", self.champion), ("challenger", self.challenger)):
            numbers |= {
                f"{side}.predictions": variant.predictions,
                f"{side}.labelled": variant.labelled,
                f"{side}.error_rate": variant.error_rate,
                f"{side}.latency_p99_ms": variant.latency_p99_ms,
                f"{side}.score_mean": variant.score_mean,
                f"{side}.score_stddev": variant.score_stddev,
            }
            if variant.log_loss is not None:
                numbers[f"{side}.log_loss"] = variant.log_loss
        return {name: float(value) for name, value in numbers.items() if not math.isinf(value)}
