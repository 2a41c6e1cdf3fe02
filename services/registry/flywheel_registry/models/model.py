"""A model: the unit that is versioned, released and served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from flywheel_registry.models.variant import Variant
from flywheel_registry.policies.gate_policy import GatePolicy
from flywheel_registry.policies.rollout_policy import RolloutPolicy


@dataclass(frozen=True, slots=True)
class Model:
    """A model. `production_release` and `production_version` are numbers, None before the first promotion."""

    name: str
    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    gate_policy: GatePolicy = field(default_factory=GatePolicy)
    rollout_policy: RolloutPolicy = field(default_factory=RolloutPolicy)
    production_release: int | None = None
    production_version: int | None = None
    created_at: datetime | None = None
    revision: int = 1
    variants: Sequence[Variant] = ()

    @property
    def etag(self) -> str:
        """Changes with every update of the model."""
        return f"r{self.revision}"

    @property
    def project(self) -> str:
        """The id of the model's project."""
        return self.name.split("/")[1]
