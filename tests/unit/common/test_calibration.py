"""Tests of calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.scoring.calibration import Identity, Isotonic, Platt, Temperature


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


def test_temperature_divides_the_log_probabilities() -> None:
    raw = [[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]]
    powers = [[p ** (1 / 2.5) for p in row] for row in raw]
    expected = [[p / sum(row) for p in row] for row in powers]
    assert Temperature(2.5).apply(np.array(raw)) == pytest.approx(np.array(expected), rel=1e-12)
    assert Temperature(1.0).apply(np.array(raw)) == pytest.approx(np.array(raw), rel=1e-12)


@given(
    row=st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(lambda row: sum(row) > 0),
    temperature=st.floats(0.05, 20),
)
def test_temperature_keeps_the_order_and_the_sum_one(row: list[float], temperature: float) -> None:
    (found,) = Temperature(temperature).apply(np.array([row]))
    assert found.sum() == pytest.approx(1.0)
    assert (np.diff(found[np.argsort(row)]) >= 0).all()
    assert found[np.argmin(row)] == 0 or min(row) > 0


def test_a_row_without_probabilities_becomes_nan() -> None:
    found = Temperature(2.0).apply(np.array([[0.0, 0.0], [0.5, np.nan], [-0.5, 0.5], [0.5, 0.5]]))
    assert np.isnan(found).any(axis=1).tolist() == [True, True, True, False]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_refuses_a_temperature_that_is_not_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Temperature(temperature)
