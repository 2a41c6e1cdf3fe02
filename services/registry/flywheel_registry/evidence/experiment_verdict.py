"""The verdict of an experiment, as the monitor computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SHIP, ROLL_BACK = "SHIP", "ROLL_BACK"


@dataclass(frozen=True, slots=True)
class ExperimentVerdict:
    """SHIP, ROLL_BACK or CONTINUE, and why."""

    experiment: str
    verdict: str
    reason: str


class Experiments(Protocol):
    """The experiments of the monitor."""

    async def verdicts(self, release: str) -> Sequence[ExperimentVerdict] | None:
        """Return the verdicts of the newest 1,000 experiments whose treatment is the release, newest first:
        that of now of a running one. None when the monitor does not answer. Never raises."""
        ...
