"""A retraining policy: when pipelines of a model run by themselves, and its validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName
from flywheel_trainer.pipelines.pipeline_run import ModelName, PipelineSpec, check_pipeline
from flywheel_trainer.policies.errors import InvalidPolicy
from flywheel_trainer.policies.schedule import Continuous, Schedule, check_continuous, check_schedule
from flywheel_trainer.policies.stored_pipeline import StoredPipeline, check_stored_pipeline

DATA_QUALITY = "DATA_QUALITY"
KINDS = ("DATA_DRIFT", "PREDICTION_DRIFT", "LABEL_DRIFT", "CONCEPT_DRIFT")
"""Alert kinds that can trigger a retraining."""

DEFAULT_COOLDOWN = timedelta(days=7)
DEFAULT_DAILY_BUDGET = 1
DEFAULT_HISTORY = timedelta(days=90)
LONGEST_HISTORY = timedelta(days=36_525)


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
    pipeline: PipelineSpec | None
    """The standard pipeline, of the triggers without a stored one; the time range of its spine is set for
    each run."""
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
    drift_pipeline: StoredPipeline | None = None
    """What drift runs; None: the standard pipeline."""

    @property
    def model(self) -> str:
        return str(ModelName(self.name.project, self.name.policy))


def check_policy(policy: Policy) -> None:
    """Raises InvalidPolicy, InvalidSpec or InvalidName naming the field."""
    problems = [
        (policy.cooldown < timedelta(0), "cooldown", "must not be negative"),
        (
            not timedelta(0) < policy.history <= LONGEST_HISTORY,
            "history",
            "must be above 0 and up to 100 years",
        ),
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
    ]
    _refuse_first(problems)
    _check_pipelines(policy)
    if policy.schedule is not None:
        check_schedule(policy.schedule)
    if policy.continuous is not None:
        check_continuous(policy.continuous)


def _check_pipelines(policy: Policy) -> None:
    project, spec = policy.name.project, policy.pipeline
    schedule, continuous = policy.schedule, policy.continuous
    runs = [policy.drift_pipeline] if not policy.ignore_drift else []
    runs += [trigger.pipeline for trigger in (schedule, continuous) if trigger is not None]
    if spec is None and (None in runs or not runs):
        _refuse_first([(True, "pipeline", "is missing: a trigger has no stored pipeline")])
    for stored, field in (
        (policy.drift_pipeline, "policy.drift_pipeline"),
        (schedule.pipeline if schedule is not None else None, "policy.schedule.pipeline"),
        (continuous.pipeline if continuous is not None else None, "policy.continuous.pipeline"),
    ):
        if stored is not None:
            check_stored_pipeline(stored, project, field)
    if spec is not None:
        check_pipeline(spec, project)
        model = ModelName.parse(spec.model).model
        rule = "must be a source spine, because the policy sets its time range"
        _refuse_first(
            [
                (model != policy.name.policy, "name", f"must end with the model's id, {model!r}"),
                ("source" not in spec.spine, "pipeline.spine", rule),
            ]
        )


def _refuse_first(problems: Sequence[tuple[bool, str, str]]) -> None:
    for wrong, field, rule in problems:
        if wrong:
            raise InvalidPolicy(f"policy.{field} {rule}.", field=f"policy.{field}")
