"""An experiment as it was declared, and its state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import IntEnum
from functools import cached_property
from typing import Any

from flywheel_common.errors import InvalidName
from flywheel_monitor.experiments.errors import InvalidExperiment
from flywheel_monitor.experiments.metric import Metric, MetricRole
from flywheel_monitor.models.names import ExperimentName, ModelName, NamedVariant, ReleaseName, RolloutName

DEFAULT_ALPHA = 0.05
MAX_METRICS = 20
MAX_WEEKS = 52
MAX_RUNNING = 10
"""Running experiments of a model, which bounds the work per prediction."""
CONTROL, TREATMENT = 0, 1
"""Numbers of the arms."""


class ExperimentState(IntEnum):
    """Numbers equal those of the API."""

    RUNNING = 1
    CONCLUDED = 2


class ExperimentVerdict(IntEnum):
    """Numbers equal those of the API."""

    UNSPECIFIED = 0
    CONTINUE = 1
    SHIP = 2
    ROLL_BACK = 3


@dataclass(frozen=True)
class Arm:
    """The predictions of one release that a rollout or a named variant routed or, if `source` is the model,
    that it answered as the champion without either. `share` of the subjects."""

    source: str
    release: str
    share: float = 1.0

    @property
    def routed_by(self) -> str:
        """What its predictions name as their rollout: nothing for the champion's."""
        return "" if _is(ModelName, self.source) else self.source


@dataclass(frozen=True)
class Declaration:
    """What is tested; see `Experiment` of the API. It never changes."""

    control: Arm
    treatment: Arm
    metrics: tuple[Metric, ...]
    weeks: int
    alpha: float = DEFAULT_ALPHA
    generation: int = 0

    @property
    def arms(self) -> tuple[Arm, Arm]:
        return self.control, self.treatment

    @cached_property
    def amounts(self) -> tuple[str, ...]:
        """The names of the amounts that are added per subject, sorted."""
        return tuple(sorted({name for metric in self.metrics for name in metric.amounts}))

    @property
    def deciding(self) -> int:
        """How many metrics decide."""
        return sum(metric.decides for metric in self.metrics)

    def arm_of(self, source: str, release: str, generation: int) -> int | None:
        """The arm that a prediction belongs to."""
        if self.generation not in (0, generation):
            return None
        for number, arm in enumerate(self.arms):
            if (arm.routed_by, arm.release) == (source, release):
                return number
        return None

    def checked(self, name: ExperimentName) -> Declaration:
        """The declaration itself. Raises InvalidExperiment, which lists every problem."""
        problems = [problem for metric in self.metrics for problem in metric.problems()]
        problems += [problem for arm in self.arms for problem in _arm_problems(arm, name.model_name)]
        if (self.control.source, self.control.release) == (self.treatment.source, self.treatment.release):
            problems.append("control and treatment must differ")
        of_rollout = ["/rollouts/" in arm.source for arm in self.arms]
        if any(of_rollout) and self.control.source != self.treatment.source:
            problems.append("a rollout divides its subjects alone: it must be the source of both arms")
        if not 1 <= self.weeks <= MAX_WEEKS:
            problems.append(f"weeks must be 1 to {MAX_WEEKS}")
        if not 0 < self.alpha < 1:
            problems.append("alpha must lie between 0 and 1")
        names = [metric.name for metric in self.metrics]
        if len(set(names)) != len(names) or len(names) > MAX_METRICS:
            problems.append(f"the names of at most {MAX_METRICS} metrics must differ")
        if not any(metric.role is MetricRole.PRIMARY for metric in self.metrics):
            problems.append("there must be a primary metric")
        if problems:
            raise InvalidExperiment(f"The experiment is not valid: {'; '.join(problems)}.")
        return self

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Declaration:
        return cls(
            Arm(**stored["control"]),
            Arm(**stored["treatment"]),
            tuple(map(Metric.from_json, stored["metrics"])),
            stored["weeks"],
            stored["alpha"],
            stored["generation"],
        )


@dataclass(frozen=True)
class Experiment:
    """A stored experiment."""

    id: int
    name: str
    declaration: Declaration
    created_at: datetime
    created_by: str
    state: ExperimentState = ExperimentState.RUNNING
    concluded_at: datetime | None = None
    concluded_by: str = ""
    verdict: ExperimentVerdict = ExperimentVerdict.UNSPECIFIED
    reason: str = ""


def _arm_problems(arm: Arm, model: str) -> list[str]:
    found = []
    if not any(_is(kind, arm.source) for kind in (RolloutName, NamedVariant, ModelName)):
        found.append(f"source {arm.source!r} is neither a rollout nor a variant nor the model")
    if not _is(ReleaseName, arm.release):
        found.append(f"{arm.release!r} is not the name of a release")
    if not (f"{arm.source}/".startswith(f"{model}/") and arm.release.startswith(f"{model}/")):
        found.append(f"{arm.source!r} and {arm.release!r} must belong to {model}")
    if not (math.isfinite(arm.share) and arm.share > 0):
        found.append("the shares of both arms must be positive, or both 0 for equal ones")
    return found


def _is(kind: type[RolloutName | NamedVariant | ReleaseName | ModelName], name: str) -> bool:
    try:
        kind.parse(name)
    except InvalidName:
        return False
    return True
