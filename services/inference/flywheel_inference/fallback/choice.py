"""Fallback choice: what answers a request when the model cannot.

A cached batch prediction that is not older than `cached_max_age_seconds` comes first, then the declared
default, otherwise an error.
"""

from __future__ import annotations

from flywheel_common.scoring.cached_prediction import CachedPrediction
from flywheel_common.signature import OutputSpec
from flywheel_inference.releases.release import FallbackPolicy

MICROS = 1_000_000

MODEL, CACHED, DEFAULT, ERROR = 1, 2, 3, 4
"""Sources of an answer: numbers of events.v1.PredictionSource."""


def choose_fallback(
    policy: FallbackPolicy, output: OutputSpec, cached: CachedPrediction | None, as_of_micros: int
) -> tuple[tuple[float, ...], int] | None:
    """The values and their source (CACHED or DEFAULT); None when no fallback of the policy applies.
    A cached prediction applies when it is of this output, and not younger than `as_of_micros` nor more than
    `cached_max_age_seconds` older."""
    if cached is not None and policy.cached_max_age_seconds > 0 and _is_of(cached, output):
        age = (as_of_micros - cached.scored_at_micros) / MICROS
        if 0 <= age <= policy.cached_max_age_seconds:
            return cached.values, CACHED
    if policy.default is not None:
        return policy.default, DEFAULT
    return None


def _is_of(cached: CachedPrediction, output: OutputSpec) -> bool:
    return cached.output == output.fingerprint and len(cached.values) == output.width
