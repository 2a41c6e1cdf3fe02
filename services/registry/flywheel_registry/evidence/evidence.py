"""Evidence: the frozen record of what one decision was based on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Evidence:
    """The numbers and findings of one decision; `kind` is OFFLINE, SHADOW or CANARY."""

    model: str
    kind: str
    version: int
    values: Mapping[str, float]
    findings: Sequence[str]
    passed: bool
    number: int = 0
    created_at: datetime | None = None

    @property
    def name(self) -> str:
        """The full resource name."""
        return f"{self.model}/evidence/{self.number}"


def name_of(evidence: Evidence | None) -> str:
    """Return the evidence's resource name; empty for None."""
    return "" if evidence is None else evidence.name
