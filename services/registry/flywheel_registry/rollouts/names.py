"""Resource names of rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flywheel_common.names import Pattern
from flywheel_registry.models.names import NumberedName


@dataclass(frozen=True, slots=True)
class RolloutName(NumberedName):
    """`projects/{project}/models/{model}/rollouts/{number}`."""

    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/rollouts/{number:int}")
    project: str
    model: str
    number: int
