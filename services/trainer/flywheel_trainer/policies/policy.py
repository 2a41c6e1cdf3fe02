"""A retraining policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from flywheel_common.names import Pattern, ResourceName


@dataclass(frozen=True, slots=True)
class PolicyName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/retrainingPolicies/{policy}")
    project: str
    policy: str


DATA_QUALITY = "DATA_QUALITY"


KINDS = ("DATA_DRIFT", "PREDICTION_DRIFT", "LABEL_DRIFT", "CONCEPT_DRIFT")


@dataclass(frozen=True)
class Policy:
    """When a model is retrained. `pipeline` is the specification of the run in its stored form."""

    project: str
    id: str
    pipeline: Mapping[str, Any]
    trigger_kinds: tuple[str, ...] = ()
    cooldown: timedelta = timedelta(days=7)
    daily_budget: int = 1
    history: timedelta = timedelta(days=90)
    dry_run: bool = False
    disabled: bool = False
