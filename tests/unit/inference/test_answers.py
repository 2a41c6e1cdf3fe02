"""Calibration, fallback and breaker."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_inference.fallback.choice import CACHED, DEFAULT, CachedPrediction, fall_back
from flywheel_inference.fallback.circuit_breaker import Breaker
from flywheel_inference.releases.calibration import Identity, Isotonic, Platt
from flywheel_inference.releases.release import FallbackPolicy

DAY = 86_400_000_000


def test_platt_is_the_logistic_of_a_scaled_logit() -> None:
    raw = [0.1, 0.5, 0.9]
    expected = [1 / (1 + math.exp(-(1.7 * math.log(p / (1 - p)) - 0.3))) for p in raw]
    assert Platt(1.7, -0.3).apply(np.array(raw, np.float32)).tolist() == pytest.approx(expected, rel=1e-6)


@given(score=st.floats(0, 1), slope=st.floats(0.1, 5), intercept=st.floats(-5, 5))
def test_platt_answers_a_probability_even_at_the_ends(score: float, slope: float, intercept: float) -> None:
    (p,) = Platt(slope, intercept).apply(np.array([score])).tolist()
    assert 0 <= p <= 1


def test_isotonic_is_linear_between_its_points_and_constant_outside() -> None:
    curve = Isotonic((0.2, 0.6), (0.1, 0.5))
    assert curve.apply(np.array([0.0, 0.2, 0.4, 0.6, 1.0])).tolist() == pytest.approx(
        [0.1, 0.1, 0.3, 0.5, 0.5]
    )
    with pytest.raises(ValueError, match="rise"):
        Isotonic((0.6, 0.2), (0.1, 0.5))
    with pytest.raises(ValueError, match="equally many"):
        Isotonic((0.6,), ())


@pytest.mark.parametrize("calibration", [Identity(), Platt(1, 0), Isotonic((0.0, 1.0), (0.0, 1.0))])
def test_nan_stays_nan(calibration: Identity | Platt | Isotonic) -> None:
    assert math.isnan(calibration.apply(np.array([np.nan], np.float32))[0])


def test_a_cached_prediction_answers_before_the_default_while_it_is_young_enough() -> None:
    policy = FallbackPolicy(default_score=0.3, cached_max_age_seconds=86_400)
    young, old = CachedPrediction(0.7, 10 * DAY), CachedPrediction(0.7, 10 * DAY - 1)
    assert fall_back(policy, young, 11 * DAY) == (0.7, CACHED)
    assert fall_back(policy, old, 11 * DAY) == (0.3, DEFAULT)
    assert fall_back(FallbackPolicy(default_score=0.3), young, 10 * DAY) == (0.3, DEFAULT)
    assert fall_back(FallbackPolicy(), young, 10 * DAY) is None
    assert fall_back(FallbackPolicy(default_score=0.0), None, 0) == (0.0, DEFAULT)


def test_the_breaker_opens_after_failures_in_a_row_and_closes_after_a_probe_succeeds() -> None:
    breaker = Breaker(threshold=3, open_seconds=1.0)
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
