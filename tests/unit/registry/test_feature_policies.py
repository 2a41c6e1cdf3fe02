"""Feature policies of a release are checked against the inputs of its version."""

from __future__ import annotations

import math

import pytest

from flywheel_common.signature import BOOL, FLOAT32_VECTOR, FLOAT64, INT64, STRING, InputSpec
from flywheel_registry.releases.errors import InvalidFeaturePolicy
from flywheel_registry.releases.feature_policies import TIMESTAMP, check_policies
from flywheel_registry.releases.release import ALLOW, DEFAULT, FAIL, DefaultValue, FeaturePolicy

INPUTS = (
    InputSpec("a__flag", BOOL),
    InputSpec("a__count", INT64),
    InputSpec("a__number", FLOAT64),
    InputSpec("a__text", STRING),
    InputSpec("a__vector", FLOAT32_VECTOR, vector_size=2),
    InputSpec("a__at", TIMESTAMP),
)


@pytest.mark.parametrize(
    ("feature", "default"),
    [
        ("a__flag", False),
        ("a__count", 7),
        ("a__count", 7.0),
        ("a__number", -0.5),
        ("a__number", 3),
        ("a__text", ""),
        ("a__vector", [1.0, 2]),
        ("a__at", "2026-01-01T00:00:00Z"),
    ],
)
def test_a_default_of_the_type_of_its_input_is_accepted(feature: str, default: DefaultValue) -> None:
    check_policies([FeaturePolicy(feature, DEFAULT, DEFAULT, default)], INPUTS)


@pytest.mark.parametrize(
    ("feature", "default"),
    [
        ("a__flag", 1),
        ("a__count", 7.5),
        ("a__count", True),
        ("a__number", math.nan),
        ("a__number", "1"),
        ("a__text", 1.0),
        ("a__vector", [1.0]),
        ("a__vector", [1.0, math.inf]),
        ("a__vector", 1.0),
        ("a__at", 5),
        ("a__number", None),
        ("other", 1.0),
    ],
)
def test_any_other_default_is_refused(feature: str, default: DefaultValue) -> None:
    with pytest.raises(InvalidFeaturePolicy):
        check_policies([FeaturePolicy(feature, ALLOW, DEFAULT, default)], INPUTS)


def test_an_input_has_one_policy_with_known_actions() -> None:
    fail = FeaturePolicy("a__flag", FAIL, FAIL)
    check_policies([fail, FeaturePolicy("a__text", FAIL)], INPUTS)
    with pytest.raises(InvalidFeaturePolicy, match="already"):
        check_policies([fail, fail], INPUTS)
    with pytest.raises(InvalidFeaturePolicy, match="unknown action"):
        check_policies([FeaturePolicy("a__flag", 9)], INPUTS)
