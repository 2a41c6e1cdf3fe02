"""A pipeline run: its specification and steps, and the validation of the specification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar, Self

from flywheel_common.names import Pattern, ResourceName
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.train_spec import TrainSpec, check_spec

STEPS = ("training_set", "train", "evaluate", "register", "release", "rollout")

FILTER_FIELDS: Mapping[str, tuple[str, ...]] = {"state": tuple(JobState), "model": (), "cause_alert": ()}
"""Fields of the filter of ListPipelineRuns, with their values if they have few."""


@dataclass(frozen=True, slots=True)
class PipelineRunName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/pipelineRuns/{run}")
    project: str
    run: str


@dataclass(frozen=True, slots=True)
class ModelName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}")
    project: str
    model: str


@dataclass(frozen=True)
class PipelineSpec:
    """How a model is trained and released.

    `spine` and `fallback` are messages of the feature service and the registry as JSON, which are passed on
    to them.
    """

    model: str
    feature_set: str
    spine: Mapping[str, Any]
    train: TrainSpec
    threshold: float = 0.0
    fallback: Mapping[str, Any] | None = None
    segment_keys: tuple[str, ...] = ()
    start_rollout: bool = False

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `asdict` followed by a round trip through JSON."""
        train = TrainSpec.from_json(fields["train"])
        return cls(**{**fields, "train": train, "segment_keys": tuple(fields["segment_keys"])})


@dataclass(frozen=True)
class Step:
    """One step; `output` is the name of the resource that it created, `message` its result in one line."""

    step: str
    state: JobState = JobState.QUEUED
    started_at: datetime | None = None
    ended_at: datetime | None = None
    output: str = ""
    message: str = ""


@dataclass(frozen=True)
class PipelineRun:
    """One durable run of a pipeline.

    `event_time` orders its events: the end of the drift window that started it, or the time of the
    StartPipelineRun call.
    """

    name: PipelineRunName
    spec: PipelineSpec
    event_time: datetime
    state: JobState = JobState.QUEUED
    steps: tuple[Step, ...] = field(default_factory=lambda: tuple(Step(step) for step in STEPS))
    training_set: str = ""
    run: str = ""
    model_version: str = ""
    release: str = ""
    rollout: str = ""
    gate_passed: bool = False
    error_reason: str = ""
    error_message: str = ""
    cause_alert: str = ""
    cancel_requested: bool = False
    created_at: datetime | None = None
    ended_at: datetime | None = None


def check_pipeline(spec: PipelineSpec, project: str) -> None:
    """Raises InvalidSpec or InvalidName naming the field."""
    if ModelName.parse(spec.model).project != project:
        raise InvalidSpec("model belongs to another project.", field="spec.model")
    if "/featureSets/" not in spec.feature_set:
        raise InvalidSpec(
            "feature_set must name a feature set: projects/{project}/featureSets/{set}[/versions/{version}].",
            field="spec.feature_set",
        )
    if not spec.spine:
        raise InvalidSpec("spine is missing: set its source or its file.", field="spec.spine")
    if not 0 <= spec.threshold <= 1:
        raise InvalidSpec("threshold must be between 0 and 1.", field="spec.threshold")
    if spec.train.code is not None:
        raise InvalidSpec("train.code cannot be part of a pipeline: submit a job.", field="train.code")
    check_spec(replace(spec.train, training_set="set by the pipeline"))
