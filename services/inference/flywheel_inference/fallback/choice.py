"""Fallback choice: what answers a request when the model cannot.

A cached batch prediction that is not older than `cached_max_age_seconds` comes first, then the declared
default, otherwise an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_inference.releases.release import FallbackPolicy

MICROS = 1_000_000

MODEL, CACHED, DEFAULT, ERROR = 1, 2, 3, 4
"""Sources of an answer: numbers of events.v1.PredictionSource."""


@dataclass(frozen=True, slots=True)
class CachedPrediction:
    """A cached batch prediction: calibrated score, and when it was computed (microseconds since 1970 UTC)."""

    score: float
    scored_at_micros: int


def choose_fallback(
    policy: FallbackPolicy, cached: CachedPrediction | None, as_of_micros: int
) -> tuple[float, int] | None:
    """The score and its source (CACHED or DEFAULT); None when no fallback of the policy applies.
    A cached prediction applies when it is at most `cached_max_age_seconds` older than `as_of_micros`."""
    if cached is not None and policy.cached_max_age_seconds > 0:
        age = (as_of_micros - cached.scored_at_micros) / MICROS
        if age <= policy.cached_max_age_seconds:
            return cached.score, CACHED
    if policy.default_score is not None:
        return policy.default_score, DEFAULT
    return None
