"""Tests of the fallback choice and of the circuit breaker."""

from __future__ import annotations

from flywheel_common.scoring.cached_prediction import CachedPrediction
from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_inference.fallback.choice import CACHED, DEFAULT, choose_fallback
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker
from flywheel_inference.releases.release import FallbackPolicy

DAY = 86_400_000_000
SCORE = OutputSpec()
CLASSES = OutputSpec(OutputKind.MULTICLASS, class_names=("a", "b", "c"))


def cached(*values: float, at: int = 10 * DAY, output: OutputSpec = SCORE) -> CachedPrediction:
    return CachedPrediction(values, at, output.fingerprint)


def test_a_young_cached_prediction_comes_before_the_default() -> None:
    policy = FallbackPolicy(default=(0.3,), cached_max_age_seconds=86_400)
    assert choose_fallback(policy, SCORE, cached(0.7), 11 * DAY) == ((0.7,), CACHED)
    assert choose_fallback(policy, SCORE, cached(0.7, at=10 * DAY - 1), 11 * DAY) == ((0.3,), DEFAULT)


def test_a_cached_prediction_of_the_future_does_not_answer() -> None:
    policy = FallbackPolicy(default=(0.3,), cached_max_age_seconds=86_400)
    assert choose_fallback(policy, SCORE, cached(0.7, at=10 * DAY + 1), 10 * DAY) == ((0.3,), DEFAULT)
    assert choose_fallback(policy, SCORE, cached(0.7, at=10 * DAY), 10 * DAY) == ((0.7,), CACHED)


def test_a_policy_without_a_maximum_age_ignores_cached_predictions() -> None:
    young = cached(0.7)
    assert choose_fallback(FallbackPolicy(default=(0.3,)), SCORE, young, 10 * DAY) == ((0.3,), DEFAULT)
    assert choose_fallback(FallbackPolicy(), SCORE, young, 10 * DAY) is None


def test_zero_is_a_valid_default() -> None:
    assert choose_fallback(FallbackPolicy(default=(0.0,)), SCORE, None, 0) == ((0.0,), DEFAULT)


def test_a_cached_prediction_of_another_output_does_not_answer() -> None:
    policy = FallbackPolicy(cached_max_age_seconds=86_400)
    own = cached(0.2, 0.3, 0.5, output=CLASSES)
    assert choose_fallback(policy, CLASSES, own, 10 * DAY) == ((0.2, 0.3, 0.5), CACHED)
    swapped = OutputSpec(OutputKind.MULTICLASS, class_names=("b", "a", "c"))
    vector = OutputSpec(OutputKind.VECTOR, size=3)
    for other in (
        cached(0.2, 0.3, 0.5, output=swapped),
        cached(0.2, 0.3, 0.5, output=vector),
        cached(0.2, 0.3, output=CLASSES),
    ):
        assert choose_fallback(policy, CLASSES, other, 10 * DAY) is None


def test_outputs_with_the_same_meaning_have_the_same_fingerprint() -> None:
    kind = OutputKind.REGRESSION
    assert OutputSpec(kind, "a", unit="minutes").fingerprint == OutputSpec(kind, unit="minutes").fingerprint
    assert OutputSpec(kind, unit="seconds").fingerprint != OutputSpec(kind, unit="minutes").fingerprint
    # The first 16 hexadecimal digits of SHA-256 of ["BINARY", "", [], "", 0], from sha256sum.
    assert OutputSpec().fingerprint.hex() == "d9d593421d1203e9"


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
