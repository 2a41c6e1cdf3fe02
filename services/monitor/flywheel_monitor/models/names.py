"""Resource names: models, versions, rollouts, variants, experiments, alerts and alert sinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName


@dataclass(frozen=True, slots=True)
class ModelName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}")
    project: str
    model: str


@dataclass(frozen=True, slots=True)
class VersionName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/versions/{version:int}")
    project: str
    model: str
    version: int

    @property
    def model_name(self) -> str:
        return str(ModelName(self.project, self.model))


@dataclass(frozen=True, slots=True)
class RolloutName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/rollouts/{rollout:any}")
    project: str
    model: str
    rollout: str


@dataclass(frozen=True, slots=True)
class AlertName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/alerts/{alert:any}")
    project: str
    alert: str


@dataclass(frozen=True, slots=True)
class AlertSinkName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/alertSinks/{sink}")
    project: str
    sink: str


@dataclass(frozen=True, slots=True)
class NamedVariant(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/variants/{variant}")
    project: str
    model: str
    variant: str


@dataclass(frozen=True, slots=True)
class ExperimentName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/experiments/{experiment}")
    project: str
    model: str
    experiment: str

    @property
    def model_name(self) -> str:
        return str(ModelName(self.project, self.model))


@dataclass(frozen=True, slots=True)
class ReleaseName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/releases/{release:int}")
    project: str
    model: str
    release: int
