"""Tests of the fallback choice and of the circuit breaker."""

from __future__ import annotations

from flywheel_inference.fallback.choice import CACHED, DEFAULT, CachedPrediction, choose_fallback
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker
from flywheel_inference.releases.release import FallbackPolicy

DAY = 86_400_000_000


def test_a_young_cached_prediction_comes_before_the_default_score() -> None:
    policy = FallbackPolicy(default_score=0.3, cached_max_age_seconds=86_400)
    young, old = CachedPrediction(0.7, 10 * DAY), CachedPrediction(0.7, 10 * DAY - 1)
    assert choose_fallback(policy, young, 11 * DAY) == (0.7, CACHED)
    assert choose_fallback(policy, old, 11 * DAY) == (0.3, DEFAULT)


def test_a_policy_without_a_maximum_age_ignores_cached_predictions() -> None:
    young = CachedPrediction(0.7, 10 * DAY)
    assert choose_fallback(FallbackPolicy(default_score=0.3), young, 10 * DAY) == (0.3, DEFAULT)
    assert choose_fallback(FallbackPolicy(), young, 10 * DAY) is None


def test_zero_is_a_valid_default_score() -> None:
    assert choose_fallback(FallbackPolicy(default_score=0.0), None, 0) == (0.0, DEFAULT)


def test_the_breaker_opens_after_failures_in_a_row_and_closes_on_success() -> None:
    breaker = CircuitBreaker(threshold=3, open_seconds=1.0)
    for _ in range(2):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0.0)
    assert breaker.allows(0.0)
    breaker.failed(0.0)
    assert [breaker.allows(t) for t in (0.1, 0.99, 1.0, 1.1, 1.99)] == [False, False, True, False, False]
    breaker.failed(1.5)
    assert not breaker.allows(2.4)
    assert breaker.allows(2.5)
    breaker.succeeded()
    assert [breaker.allows(2.5), breaker.allows(2.5)] == [True, True]
