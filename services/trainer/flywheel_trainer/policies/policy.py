"""A retraining policy: when a model is retrained after drift, and its validation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName
from flywheel_trainer.pipelines.pipeline_run import ModelName, PipelineSpec, check_pipeline
from flywheel_trainer.policies.errors import InvalidPolicy
from flywheel_trainer.policies.schedule import Continuous, Schedule, check_continuous, check_schedule

DATA_QUALITY = "DATA_QUALITY"
KINDS = ("DATA_DRIFT", "PREDICTION_DRIFT", "LABEL_DRIFT", "CONCEPT_DRIFT")
"""Alert kinds that can trigger a retraining."""

DEFAULT_COOLDOWN = timedelta(days=7)
DEFAULT_DAILY_BUDGET = 1
DEFAULT_HISTORY = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class PolicyName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/retrainingPolicies/{policy}")
    project: str
    policy: str


@dataclass(frozen=True)
class Policy:
    """When a model is retrained; `policies.decision` applies it.

    The id of a policy is the id of its model.
    """

    name: PolicyName
    pipeline: PipelineSpec
    """The pipeline to run; the time range of its spine is set for each run."""
    trigger_kinds: tuple[str, ...] = ()
    """Alert kinds that trigger a run; empty: all of KINDS."""
    cooldown: timedelta = DEFAULT_COOLDOWN
    """Smallest distance of two triggered runs in event time."""
    daily_budget: int = DEFAULT_DAILY_BUDGET
    """Largest number of triggered runs per UTC day of event time."""
    history: timedelta = DEFAULT_HISTORY
    """Length of the spine's time range, which ends at the end of the drift window."""
    dry_run: bool = False
    """Record decisions without starting runs."""
    disabled: bool = False
    ignore_drift: bool = False
    """Drift starts no runs."""
    schedule: Schedule | None = None
    continuous: Continuous | None = None


def check_policy(policy: Policy) -> None:
    """Raises InvalidPolicy, InvalidSpec or InvalidName naming the field."""
    spec = policy.pipeline
    check_pipeline(spec, policy.name.project)
    model = ModelName.parse(spec.model).model
    problems = [
        (model != policy.name.policy, "name", f"must end with the model's id, {model!r}"),
        (policy.cooldown < timedelta(0), "cooldown", "must not be negative"),
        (policy.history <= timedelta(0), "history", "must be above zero"),
        (policy.daily_budget < 1, "daily_budget", "must be at least 1"),
        (
            DATA_QUALITY in policy.trigger_kinds,
            "trigger_kinds",
            "must not contain DATA_QUALITY: a model is not retrained on bad data",
        ),
        (
            not set(policy.trigger_kinds) <= set(KINDS),
            "trigger_kinds",
            f"can only contain {', '.join(KINDS)}",
        ),
        (
            "source" not in spec.spine,
            "pipeline.spine",
            "must be a source spine, because the policy sets its time range",
        ),
    ]
    for wrong, field, rule in problems:
        if wrong:
            raise InvalidPolicy(f"policy.{field} {rule}.", field=f"policy.{field}")
    if policy.schedule is not None:
        check_schedule(policy.schedule)
    if policy.continuous is not None:
        check_continuous(policy.continuous)
