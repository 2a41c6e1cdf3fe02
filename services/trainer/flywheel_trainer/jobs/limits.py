"""Limits of a job: how long an attempt may take, how long without a step, and how many attempts there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from flywheel_trainer.jobs.errors import InvalidSpec

MAX_ATTEMPTS = 10
_LONGEST_SECONDS = 366 * 86_400.0


@dataclass(frozen=True)
class Limits:
    """When an attempt is ended, and whether another one follows (JobLimits in the API)."""

    timeout_seconds: float = 24 * 3600.0
    """Longest time from the start of an attempt to its end."""
    stall_seconds: float = 30 * 60.0
    """Longest time without a new step."""
    max_attempts: int = 3
    """Attempts in total; a further one follows only a loss, never an error of the training code."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `asdict`; absent fields are defaults."""
        return cls(**fields)


def check_limits(limits: Limits, field: str) -> None:
    """Raises InvalidSpec naming the field below `field`."""
    for seconds, name in ((limits.timeout_seconds, "timeout"), (limits.stall_seconds, "stall_timeout")):
        if not 1 <= seconds <= _LONGEST_SECONDS:
            raise InvalidSpec(f"{field}.{name} must be between 1 s and 366 days.", field=f"{field}.{name}")
    if not 1 <= limits.max_attempts <= MAX_ATTEMPTS:
        raise InvalidSpec(
            f"{field}.max_attempts must be between 1 and {MAX_ATTEMPTS}.", field=f"{field}.max_attempts"
        )
