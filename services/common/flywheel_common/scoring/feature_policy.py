"""Policies of a release for features without a usable value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ALLOW, DEFAULT, FAIL = 1, 2, 3
"""Actions: numbers of registry.v1.FeatureAction."""


@dataclass(frozen=True, slots=True)
class FeaturePolicy:
    """The action for an input whose value is missing (NULL, NOT_FOUND, NOT_YET_VALID) or STALE. `default`: a
    value of the input's type, as `value.coerce` gives it."""

    feature: str
    missing: int = ALLOW
    stale: int = ALLOW
    default: Any = None
