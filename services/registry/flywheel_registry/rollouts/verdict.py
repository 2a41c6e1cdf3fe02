"""The verdict on a step of a rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum


class Decision(StrEnum):
    """What a rollout does next."""

    HOLD = "HOLD"
    ADVANCE = "ADVANCE"
    REFUSE = "REFUSE"
    ROLL_BACK = "ROLL_BACK"
    EXPIRE = "EXPIRE"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, its reason (one sentence with the numbers) and one finding per evaluated rule.

    `rejects` means that a bound on the quality of the scores was crossed, which rejects the version for good:
    nothing else does. `values` are the numbers that the decision was made on.
    """

    decision: Decision
    reason: str
    findings: tuple[str, ...] = ()
    rejects: bool = False
    values: Mapping[str, float] = field(default_factory=dict)


def expire_after(verdict: Verdict, waited_seconds: float, limit_seconds: float, name: str) -> Verdict:
    """Return the verdict, or EXPIRE when it still holds after more than `limit_seconds` of wall time."""
    if verdict.decision is not Decision.HOLD or waited_seconds <= limit_seconds:
        return verdict
    return replace(
        verdict,
        decision=Decision.EXPIRE,
        reason=f"No decision within {name} of {duration_text(limit_seconds)}: {verdict.reason}",
    )


def duration_text(seconds: float) -> str:
    """Return a duration as people read it: `2 days, 3:00:00`."""
    return str(timedelta(seconds=round(seconds)))
