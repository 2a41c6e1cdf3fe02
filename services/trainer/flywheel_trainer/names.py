"""Resource names of the trainer, and the ids it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName


@dataclass(frozen=True, slots=True)
class ExperimentName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/experiments/{experiment}")
    project: str
    experiment: str


@dataclass(frozen=True, slots=True)
class RunName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/runs/{run}")
    project: str
    run: str


@dataclass(frozen=True, slots=True)
class JobName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/jobs/{job}")
    project: str
    job: str


@dataclass(frozen=True, slots=True)
class PipelineRunName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/pipelineRuns/{run}")
    project: str
    run: str


@dataclass(frozen=True, slots=True)
class PolicyName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/retrainingPolicies/{policy}")
    project: str
    policy: str


@dataclass(frozen=True, slots=True)
class ModelName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}")
    project: str
    model: str
