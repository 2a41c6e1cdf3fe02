"""Resource names of models and model versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from flywheel_common.names import Pattern, ResourceName


@dataclass(frozen=True, slots=True)
class ModelName(ResourceName):
    """`projects/{project}/models/{model}`."""

    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}")
    project: str
    model: str


class NumberedName(ResourceName):
    """Base of the names of resources that are numbered within a model."""

    __slots__ = ()
    project: str
    model: str
    number: int

    @property
    def parent(self) -> str:
        """The model's name, `projects/{project}/models/{model}`."""
        return f"projects/{self.project}/models/{self.model}"

    @classmethod
    def of(cls, model: str, number: int | None) -> str:
        """Return the name, as text, of resource `number` of a model; empty for None."""
        return "" if number is None else f"{model}/{cls.PATTERN.template.split('/')[4]}/{number}"

    @classmethod
    def numbered(cls, model: str, number: int) -> Self:
        """Return the name of resource `number` of a model."""
        return cls.parse(cls.of(model, number))


@dataclass(frozen=True, slots=True)
class VersionName(NumberedName):
    """`projects/{project}/models/{model}/versions/{number}`."""

    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/versions/{number:int}")
    project: str
    model: str
    number: int
