"""A pipeline run: its graph and steps; and the specification of a standard run, with its validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar, Self

from flywheel_common.names import Pattern, ResourceName
from flywheel_trainer.jobs.built_in import task_of
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.train_spec import TrainSpec, check_spec
from flywheel_trainer.pipelines.graph import Graph

STEPS = ("training_set", "train", "evaluate", "register", "release", "rollout")
"""Ids of the steps of a run with a PipelineSpec."""

FILTER_FIELDS: Mapping[str, tuple[str, ...]] = {
    "state": tuple(JobState),
    "model": (),
    "cause_alert": (),
    "pipeline": (),
}
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
    warm_start_from_champion: bool = False
    """Training starts from the champion's weights, if it has some."""
    min_rows: int = 0
    """With fewer rows in the training set the run ends without training."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `asdict` followed by a round trip through JSON."""
        train = TrainSpec.from_json(fields["train"])
        return cls(**{**fields, "train": train, "segment_keys": tuple(fields["segment_keys"])})


@dataclass(frozen=True)
class Approval:
    """The decision of a person on a step."""

    approved: bool
    by: str
    reason: str


@dataclass(frozen=True)
class Step:
    """The state and the result of one step."""

    step: str
    state: JobState = JobState.QUEUED
    started_at: datetime | None = None
    ended_at: datetime | None = None
    output: str = ""
    """Name of the resource that it created."""
    message: str = ""
    """The result in one line."""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 0
    error_reason: str = ""
    approval: Approval | None = None
    reused_from: str = ""
    """The pipeline run whose step gave the outputs; or empty."""


@dataclass(frozen=True)
class PipelineRun:
    """One durable run of a graph.

    `event_time` orders its events: the end of the drift window that started it, or the time of the
    StartPipelineRun call. `steps` has the states of the steps of `graph`, in the same order.
    """

    name: PipelineRunName
    event_time: datetime
    graph: Graph
    """Without fan-outs and parameters: each of its steps runs once."""
    spec: PipelineSpec | None = None
    """What the graph was made from; None: from a stored pipeline."""
    model: str = ""
    """The model that is trained; empty if the graph registers none, or only the run knows it."""
    pipeline: str = ""
    """Version of the stored pipeline."""
    params: Mapping[str, Any] = field(default_factory=dict)
    rerun_of: str = ""
    policy: str = ""
    """The retraining policy that started the run."""
    state: JobState = JobState.QUEUED
    steps: tuple[Step, ...] = ()
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

    def step(self, step: str) -> Step | None:
        return next((one for one in self.steps if one.step == step), None)


def fields_in(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a run that the outputs of a step set."""
    names = ("training_set", "run", "model_version", "release", "rollout")
    found: dict[str, Any] = {name: outputs[name] for name in names if outputs.get(name)}
    return found | ({"gate_passed": outputs["passed"]} if "passed" in outputs else {})


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
    if spec.warm_start_from_champion and spec.train.warm_start:
        raise InvalidSpec(
            "warm_start must be empty with warm_start_from_champion.", field="train.tabular.warm_start"
        )
    if not 0 <= spec.threshold <= 1:
        raise InvalidSpec("threshold must be between 0 and 1.", field="spec.threshold")
    _check_served(spec)
    if spec.train.code is None:
        check_spec(replace(spec.train, training_set="set by the pipeline"))
    else:
        check_spec(spec.train)


def _check_served(spec: PipelineSpec) -> None:
    """Raises InvalidSpec if the model that a recipe trains cannot have the threshold or the fallback."""
    task = task_of(spec.train)
    if task == "regression" and spec.threshold:
        raise InvalidSpec("threshold must be 0: a regression has none.", field="spec.threshold")
    wrong, right = ("defaultScore", "defaultValues")[:: 1 if task == "multiclass" else -1]
    if task and wrong in (spec.fallback or {}):
        raise InvalidSpec(
            f"fallback has {wrong}, but the training is {task}: set {right}.", field="spec.fallback"
        )
