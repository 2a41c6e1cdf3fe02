"""What is answered when the model cannot: cached batch prediction, then the declared default, then nothing."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_common.errors import Unavailable
from flywheel_inference.releases.release import FallbackPolicy

MICROS = 1_000_000

MODEL, CACHED, DEFAULT, ERROR = 1, 2, 3, 4
"""Numbers of events.v1.PredictionSource."""

FEATURES_UNAVAILABLE = "FEATURES_UNAVAILABLE"
MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE"
BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
BAD_SCORE = "BAD_SCORE"
FEATURES_INCOMPLETE = "FEATURES_INCOMPLETE"


class CannotScore(Exception):
    """The model cannot answer; `reason` is what the degraded answer is labelled with."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class NoFallback(Unavailable):
    """Neither the model nor a fallback can answer."""

    reason = "NO_FALLBACK"


@dataclass(frozen=True, slots=True)
class CachedPrediction:
    """A batch prediction kept in Redis: the calibrated score and when it was computed (microseconds since 1970 UTC)."""

    score: float
    scored_at_micros: int


def fall_back(
    policy: FallbackPolicy, cached: CachedPrediction | None, as_of_micros: int
) -> tuple[float, int] | None:
    """The score and its source (CACHED or DEFAULT), or None when the release declares nothing that applies.
    A cached prediction counts when it is at most `cached_max_age_seconds` older than the time asked for."""
    if cached is not None and policy.cached_max_age_seconds > 0:
        age = (as_of_micros - cached.scored_at_micros) / MICROS
        if age <= policy.cached_max_age_seconds:
            return cached.score, CACHED
    if policy.default_score is not None:
        return policy.default_score, DEFAULT
    return None
