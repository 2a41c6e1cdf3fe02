"""A variant: a release that serves beside the champion and the challenger of a rollout."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variant:
    """A release beside champion and challenger.

    It answers `percent` of the subjects that no variant before it has, and gets copies of `shadow_percent` of
    the requests that another release answers.
    """

    name: str
    release: int
    percent: float = 0.0
    shadow_percent: float = 0.0
