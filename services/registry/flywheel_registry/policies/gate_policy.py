"""The gate policy of a model: bounds on the evaluation metrics of its versions."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from flywheel_registry.policies.errors import InvalidPolicy

MAX_APPROVALS = 100
_EXPERIMENT = re.compile(r"projects/[^/\s]+/models/[^/\s]+/experiments/[^/\s]+")


@dataclass(frozen=True, slots=True)
class MetricThreshold:
    """Inclusive bounds on one metric. A delta is the challenger's metric minus the champion's."""

    metric: str
    min: float | None = None
    max: float | None = None
    min_delta: float | None = None
    max_delta: float | None = None


class ExperimentRequirement(StrEnum):
    """See `ExperimentRequirement` of the API."""

    SHIP = "SHIP"
    NO_ROLL_BACK = "NO_ROLL_BACK"


@dataclass(frozen=True, slots=True)
class ExperimentRule:
    """What the verdicts of experiments must be. `experiment`: the one that decides; empty: the newest."""

    requirement: ExperimentRequirement
    experiment: str = ""


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """The rules of the offline gate, NONE → STAGING, and of the gates for approvals and experiments to
    PRODUCTION."""

    offline: tuple[MetricThreshold, ...] = ()
    min_evaluation_rows: int = 0
    min_approvals: int = 0
    experiment: ExperimentRule | None = None

    def check(self) -> GatePolicy:
        """Return the policy itself. Raises InvalidPolicy that names the first wrong field."""
        if self.min_approvals > MAX_APPROVALS:
            raise InvalidPolicy(
                f"gate_policy.min_approvals is {self.min_approvals}: the limit is {MAX_APPROVALS}."
            )
        self._check_experiment()
        for threshold in self.offline:
            if not threshold.metric:
                raise InvalidPolicy("A threshold in gate_policy.offline has no metric: set `metric`.")
            bounds = (threshold.min, threshold.max, threshold.min_delta, threshold.max_delta)
            if all(bound is None for bound in bounds):
                raise InvalidPolicy(
                    f"The threshold on {threshold.metric!r} has no bound: "
                    "set min, max, min_delta or max_delta."
                )
            if any(bound is not None and not math.isfinite(bound) for bound in bounds):
                raise InvalidPolicy(
                    f"The threshold on {threshold.metric!r} has a bound that is not finite: "
                    "use a finite number."
                )
        return self

    def _check_experiment(self) -> None:
        rule = self.experiment
        if rule is None or not rule.experiment:
            return
        if rule.requirement is ExperimentRequirement.NO_ROLL_BACK:
            raise InvalidPolicy("gate_policy.experiment.experiment must be empty with NO_ROLL_BACK.")
        if not _EXPERIMENT.fullmatch(rule.experiment):
            raise InvalidPolicy(
                f"gate_policy.experiment.experiment is {rule.experiment!r}: "
                "use projects/{project}/models/{model}/experiments/{experiment}."
            )
