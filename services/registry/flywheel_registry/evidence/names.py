"""Resource names of evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flywheel_common.names import Pattern
from flywheel_registry.models.names import NumberedName


@dataclass(frozen=True, slots=True)
class EvidenceName(NumberedName):
    """`projects/{project}/models/{model}/evidence/{number}`."""

    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/evidence/{number:int}")
    project: str
    model: str
    number: int
