"""A pipeline run: specification, steps, and validation of the specification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from flywheel_common.errors import InvalidArgument
from flywheel_common.names import Pattern, ResourceName
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.train_spec import TrainSpec, check_spec
from flywheel_trainer.recipes.tabular.spec import Hyperparameters


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


STEPS = ("training_set", "train", "evaluate", "register", "release", "rollout")


@dataclass(frozen=True)
class PipelineSpec:
    """How a model is made and brought in. `spine` and `fallback` are the peers' own messages as JSON, passed on."""

    model: str
    feature_set: str
    spine: Mapping[str, Any]
    train: TrainSpec
    threshold: float = 0.0
    fallback: Mapping[str, Any] | None = None
    segment_keys: tuple[str, ...] = ()
    start_rollout: bool = False

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> PipelineSpec:
        """What `asdict` made of it, back."""
        train = dict(row["train"])
        hyper = dict(train.pop("hyperparameters"))
        hyper["hidden_sizes"] = tuple(hyper["hidden_sizes"])
        spec = TrainSpec(**train, hyperparameters=Hyperparameters(**hyper))
        return cls(**{**row, "train": spec, "segment_keys": tuple(row["segment_keys"])})


@dataclass(frozen=True)
class Step:
    """One step; `output` names the resource it made, `message` says in one line how it went."""

    step: str
    state: JobState = JobState.QUEUED
    started_at: datetime | None = None
    ended_at: datetime | None = None
    output: str = ""
    message: str = ""


@dataclass(frozen=True)
class PipelineRun:
    """One durable run. `event_time` orders its events: the drift window's end, or the wall clock for a start by hand."""

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
    """Raises InvalidArgument INVALID_SPEC or INVALID_NAME naming the field."""
    if ModelName.parse(spec.model).project != project:
        raise InvalidArgument("model belongs to another project.", reason="INVALID_SPEC", field="spec.model")
    if "/featureSets/" not in spec.feature_set:
        raise InvalidArgument(
            "feature_set names a feature set: projects/{project}/featureSets/{set}[/versions/{version}].",
            reason="INVALID_SPEC",
            field="spec.feature_set",
        )
    if not spec.spine:
        raise InvalidArgument(
            "spine says which rows to learn from: set source or file.",
            reason="INVALID_SPEC",
            field="spec.spine",
        )
    if not 0 <= spec.threshold <= 1:
        raise InvalidArgument("threshold is between 0 and 1.", reason="INVALID_SPEC", field="spec.threshold")
    filled = TrainSpec(**{**spec.train.__dict__, "training_set": "set by the pipeline"})
    check_spec(filled)
