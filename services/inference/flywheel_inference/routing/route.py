"""Which release answers a request: champion, challenger, and who is copied to the shadow.

The documented hash (docs/architecture.md, Routing): bucket = first 8 bytes, big-endian, of SHA-256(salt + "/" + subject)
modulo 10,000, with the rollout's name as the salt. A subject is in a share of p percent when its bucket < p * 100, so
whoever is in stays in while the percentage grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from flywheel_inference.routing.canary_assignment import bucket

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Choice(Generic[R]):
    """The release that answers; `shadow` gets a copy whose answer nobody sees."""

    release: R
    challenger: bool
    shadow: R | None


@dataclass(frozen=True, slots=True)
class Route(Generic[R]):
    """One model's routing in one generation. Requests take a route once and never look again, so none mixes two."""

    model: str
    generation: int
    champion: R
    challenger: R | None = None
    rollout: str = ""
    shadow_percent: float = 0.0
    challenger_percent: float = 0.0

    def choose(self, subject: str) -> Choice[R]:
        """The release for a subject: the same one for as long as this route's percentages hold."""
        challenger = self.challenger
        if challenger is None or (self.challenger_percent <= 0 and self.shadow_percent <= 0):
            return Choice(self.champion, False, None)
        place = bucket(self.rollout, subject)
        if place < self.challenger_percent * 100:
            return Choice(challenger, True, None)
        return Choice(self.champion, False, challenger if place < self.shadow_percent * 100 else None)
