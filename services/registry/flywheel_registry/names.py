"""Resource names of the registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName


@dataclass(frozen=True, slots=True)
class ModelName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}")
    project: str
    model: str


class _Numbered(ResourceName):
    """A numbered thing below a model."""

    __slots__ = ()
    project: str
    model: str
    number: int

    @property
    def parent(self) -> str:
        """`projects/{project}/models/{model}`."""
        return f"projects/{self.project}/models/{self.model}"

    @classmethod
    def of(cls, model: str, number: int | None) -> str:
        """The name of number `number` of a model; empty for None."""
        return "" if number is None else f"{model}/{cls.PATTERN.template.split('/')[4]}/{number}"


@dataclass(frozen=True, slots=True)
class VersionName(_Numbered):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/versions/{number:int}")
    project: str
    model: str
    number: int


@dataclass(frozen=True, slots=True)
class ReleaseName(_Numbered):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/releases/{number:int}")
    project: str
    model: str
    number: int


@dataclass(frozen=True, slots=True)
class RolloutName(_Numbered):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/rollouts/{number:int}")
    project: str
    model: str
    number: int


@dataclass(frozen=True, slots=True)
class EvidenceName(_Numbered):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/evidence/{number:int}")
    project: str
    model: str
    number: int
