"""Tests of calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_inference.releases.calibration import Identity, Isotonic, Platt


def test_platt_is_the_logistic_of_a_scaled_logit() -> None:
    raw = [0.1, 0.5, 0.9]
    expected = [1 / (1 + math.exp(-(1.7 * math.log(p / (1 - p)) - 0.3))) for p in raw]
    assert Platt(1.7, -0.3).apply(np.array(raw, np.float32)).tolist() == pytest.approx(expected, rel=1e-6)


@given(score=st.floats(0, 1), slope=st.floats(0.1, 5), intercept=st.floats(-5, 5))
def test_platt_returns_a_probability_even_for_0_and_1(score: float, slope: float, intercept: float) -> None:
    (p,) = Platt(slope, intercept).apply(np.array([score])).tolist()
    assert 0 <= p <= 1


def test_isotonic_is_linear_between_its_points_and_constant_outside() -> None:
    curve = Isotonic((0.2, 0.6), (0.1, 0.5))
    scores = curve.apply(np.array([0.0, 0.2, 0.4, 0.6, 1.0])).tolist()
    assert scores == pytest.approx([0.1, 0.1, 0.3, 0.5, 0.5])


def test_isotonic_refuses_decreasing_or_unequal_points() -> None:
    with pytest.raises(ValueError, match="must not decrease"):
        Isotonic((0.6, 0.2), (0.1, 0.5))
    with pytest.raises(ValueError, match="equally many"):
        Isotonic((0.6,), ())


@pytest.mark.parametrize("calibration", [Identity(), Platt(1, 0), Isotonic((0.0, 1.0), (0.0, 1.0))])
def test_nan_stays_nan(calibration: Identity | Platt | Isotonic) -> None:
    assert math.isnan(calibration.apply(np.array([np.nan], np.float32))[0])
