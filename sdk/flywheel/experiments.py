"""Declarations of experiments: two arms, their metrics and their weeks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flywheel_protos.monitor.v1 import experiment_pb2 as pb

COUNT, FAILURES, COST = "prediction.count", "prediction.failures", "prediction.cost"
"""Amounts of predictions, beside the names of outcomes."""


@dataclass(frozen=True)
class Metric:
    """A metric of an experiment. `outcome`: the name of recorded outcomes; their values add up per subject.

    With `of` it is a ratio of sums: outcome / of (an outcome, or `prediction.count`). Else `per="subject"` is
    the mean per subject, and `per="share"` the share of subjects with an amount above 0. `max_loss`: loss
    that is allowed, in the metric's unit, or with `relative` as a share of the control's value. `covariate`:
    the name of an outcome with a value of the subject from before the experiment, which makes the interval
    narrower (CUPED).
    """

    name: str
    outcome: str
    of: str = ""
    per: Literal["subject", "share"] = "share"
    lower_is_better: bool = False
    max_loss: float = 0.0
    relative: bool = False
    minimum_effect: float = 0.0
    covariate: str = ""

    def to_proto(self, role: pb.MetricRole) -> pb.ExperimentMetric:
        kinds = {"subject": pb.METRIC_KIND_MEAN, "share": pb.METRIC_KIND_PROPORTION}
        return pb.ExperimentMetric(
            name=self.name,
            role=role,
            kind=pb.METRIC_KIND_RATIO if self.of else kinds[self.per],
            numerator=self.outcome,
            denominator=self.of,
            lower_is_better=self.lower_is_better,
            max_loss=self.max_loss,
            relative=self.relative,
            minimum_effect=self.minimum_effect,
            covariate=self.covariate,
        )


@dataclass(frozen=True)
class Latency:
    """The p99 latency (or another quantile) of predictions; `max_loss` is a share of the control's by
    default."""

    max_loss: float
    quantile: float = 0.99
    relative: bool = True
    name: str = "latency_p99"

    def to_proto(self, role: pb.MetricRole) -> pb.ExperimentMetric:
        return pb.ExperimentMetric(
            name=self.name,
            role=role,
            kind=pb.METRIC_KIND_QUANTILE,
            lower_is_better=True,
            max_loss=self.max_loss,
            relative=self.relative,
            quantile=self.quantile,
        )


def error_rate(max_loss: float, name: str = "error_rate") -> Metric:
    """Failed predictions / predictions; at most `max_loss` (0.01: one percentage point) more than in the
    control."""
    return Metric(name, FAILURES, COUNT, lower_is_better=True, max_loss=max_loss)


def cost_per_prediction(max_loss: float, *, relative: bool = True, name: str = "cost") -> Metric:
    """Cost / predictions."""
    return Metric(name, COST, COUNT, lower_is_better=True, max_loss=max_loss, relative=relative)


@dataclass(frozen=True)
class Experiment:
    """A comparison of two releases by metrics that are declared before.

    `rollout` is the name of an A/B rollout that answers callers (a policy with `until_verdict`): its releases
    are the arms, its split the shares, and the verdict decides it. Else `control` and `treatment` are the
    names of two variants of the model; without `control` the treatment is compared with the champion, which
    answers the subjects that no variant has.
    """

    name: str
    model: str
    primary: Sequence[Metric]
    guardrails: Sequence[Metric | Latency] = ()
    secondary: Sequence[Metric | Latency] = ()
    weeks: int = 1
    rollout: str = ""
    control: str = ""
    treatment: str = ""
    alpha: float = 0.0

    @property
    def metrics(self) -> list[pb.ExperimentMetric]:
        roles = (
            (pb.METRIC_ROLE_PRIMARY, self.primary),
            (pb.METRIC_ROLE_GUARDRAIL, self.guardrails),
            (pb.METRIC_ROLE_SECONDARY, self.secondary),
        )
        return [metric.to_proto(role) for role, metrics in roles for metric in metrics]
