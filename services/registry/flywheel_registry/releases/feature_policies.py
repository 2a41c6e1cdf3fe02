"""Checks on the feature policies of a release."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flywheel_common.signature import BOOL, FLOAT32, FLOAT64, INT64, STRING, InputSpec
from flywheel_registry.releases.errors import InvalidFeaturePolicy
from flywheel_registry.releases.release import ALLOW, DEFAULT, FAIL, DefaultValue, FeaturePolicy

TIMESTAMP = 7
"""types.v1.DATA_TYPE_TIMESTAMP."""


def check_policies(policies: Sequence[FeaturePolicy], inputs: Sequence[InputSpec]) -> None:
    """Raises InvalidFeaturePolicy."""
    by_name = {spec.name: spec for spec in inputs}
    seen: set[str] = set()
    for policy in policies:
        spec = by_name.get(policy.feature)
        if spec is None or policy.feature in seen:
            raise InvalidFeaturePolicy(
                f"feature_policies names {policy.feature[:80]!r}, which is no input or has a policy already."
            )
        seen.add(policy.feature)
        if not {policy.missing, policy.stale} <= {ALLOW, DEFAULT, FAIL}:
            raise InvalidFeaturePolicy(f"The policy for {policy.feature} has an unknown action.")
        if policy.default is None:
            if DEFAULT in (policy.missing, policy.stale):
                raise InvalidFeaturePolicy(f"The policy for {policy.feature} has no default_value: send one.")
        elif not _fits(policy.default, spec):
            raise InvalidFeaturePolicy(
                f"The default_value for {policy.feature} does not have the type and size of the input."
            )


def _fits(default: DefaultValue, spec: InputSpec) -> bool:
    if spec.vector_size:
        return (
            isinstance(default, list) and len(default) == spec.vector_size and all(map(_is_number, default))
        )
    if spec.data_type == BOOL:
        return isinstance(default, bool)
    if spec.data_type == INT64:
        return isinstance(default, int | float) and _is_number(default) and default == int(default)
    if spec.data_type in (FLOAT32, FLOAT64):
        return _is_number(default)
    return spec.data_type in (STRING, TIMESTAMP) and isinstance(default, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
