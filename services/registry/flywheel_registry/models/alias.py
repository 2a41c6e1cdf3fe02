"""Aliases: names for versions of a model that can be moved from one version to another."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from flywheel_common.names import Pattern, ResourceName


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for version number `version` of a model. Only promoters may change it when it is protected."""

    model: str
    alias: str
    version: int
    protected: bool
    set_at: datetime
    set_by: str

    @property
    def name(self) -> str:
        """The full resource name."""
        return f"{self.model}/aliases/{self.alias}"


@dataclass(frozen=True, slots=True)
class AliasName(ResourceName):
    """`projects/{project}/models/{model}/aliases/{alias}`."""

    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/aliases/{alias}")
    project: str
    model: str
    alias: str

    @property
    def parent(self) -> str:
        """The model's name."""
        return f"projects/{self.project}/models/{self.model}"
