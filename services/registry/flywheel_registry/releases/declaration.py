"""Checks on the declaration of a release, made before anything is stored."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from flywheel_common.names import check_id
from flywheel_common.signature import OutputKind, OutputSpec, Signature
from flywheel_registry.policies.rollout_policy import LONGEST_SECONDS
from flywheel_registry.releases.errors import InvalidCalibration, InvalidFallback, InvalidThreshold
from flywheel_registry.releases.feature_policies import check_policies
from flywheel_registry.releases.release import Calibration, Isotonic, Platt, Release, Temperature
from flywheel_registry.releases.serving_policy import check_serving_policy

_CALIBRATIONS: dict[OutputKind, tuple[type[Calibration], ...]] = {
    OutputKind.BINARY: (Platt, Isotonic),
    OutputKind.MULTICLASS: (Temperature,),
}
"""Kind of the output → its calibrations. The other kinds have none."""


def check_release(release: Release, signature: Signature) -> None:
    """Check a release against the signature of its version.

    Raises InvalidThreshold, InvalidCalibration, InvalidFallback, InvalidFeaturePolicy, InvalidServingPolicy,
    or InvalidId for a segment key.
    """
    output = signature.output
    check_policies(release.feature_policies, signature.inputs)
    for key in release.segment_keys:
        check_id(key, "segment_keys")
    _check_thresholds(release, output)
    _check_calibration(release.calibration, output.kind)
    _check_default(release, output)
    age = release.cached_max_age_seconds
    if age is not None and not 0 < age <= LONGEST_SECONDS:
        raise InvalidFallback("fallback.cached_max_age must be positive and at most ten years, or unset.")
    if release.serving is not None:
        check_serving_policy(release.serving, has_cached=age is not None)


def _check_thresholds(release: Release, output: OutputSpec) -> None:
    if not 0 <= release.threshold <= 1:
        raise InvalidThreshold(
            f"threshold {release.threshold:g} is not a probability: it must lie in 0 to 1."
        )
    if release.segment_thresholds and output.kind in (OutputKind.REGRESSION, OutputKind.VECTOR):
        raise InvalidThreshold(f"A {output.kind.name} output has no threshold: leave segment_thresholds out.")
    for segment, threshold in release.segment_thresholds.items():
        if not _can_apply(segment, release.segment_keys):
            raise InvalidThreshold(
                f"segment_thresholds names {segment[:80]!r}: write `key=value` with one of segment_keys, "
                f"or all of them in their order: {','.join(f'{key}=...' for key in release.segment_keys)}."
            )
        if not 0 <= threshold <= 1:
            raise InvalidThreshold(
                f"The threshold {threshold:g} of segment {segment[:80]} must lie in 0 to 1."
            )


def _can_apply(segment: str, keys: Sequence[str]) -> bool:
    """Whether a segment is one key with a value, or all keys with values in their order. A value may have
    commas, but what looks like one more key after a comma is a mistake: such a segment would never apply."""
    parts = re.split(",(?=[^,=]+=)", segment)
    named = [part.partition("=")[0] if "=" in part else None for part in parts]
    return named == list(keys) or (len(named) == 1 and named[0] in keys)


def _check_default(release: Release, output: OutputSpec) -> None:
    scalar = output.kind in (OutputKind.BINARY, OutputKind.REGRESSION)
    if scalar and release.default_values:
        raise InvalidFallback(f"A {output.kind.name} output has fallback.default_score, no default_values.")
    if not scalar and release.default_score is not None:
        raise InvalidFallback(f"A {output.kind.name} output has fallback.default_values, no default_score.")
    values = [release.default_score] if release.default_score is not None else list(release.default_values)
    if release.default_values and len(values) != output.width:
        raise InvalidFallback(
            f"fallback.default_values has {len(values)} values, the output has {output.width}."
        )
    probability = output.kind in (OutputKind.BINARY, OutputKind.MULTICLASS)
    for value in values:
        if not (0 <= value <= 1 if probability else math.isfinite(value)):
            raise InvalidFallback(
                f"The default {value:g} of the fallback must "
                + ("lie in 0 to 1." if probability else "be finite.")
            )


def _check_calibration(calibration: Calibration | None, kind: OutputKind) -> None:
    if calibration is not None and not isinstance(calibration, _CALIBRATIONS.get(kind, ())):
        raise InvalidCalibration(
            f"A {kind.name} output cannot have a calibration of kind {type(calibration).__name__.lower()}: "
            "Platt and isotonic are for BINARY, temperature is for MULTICLASS."
        )
    match calibration:
        case Temperature(temperature) if not (math.isfinite(temperature) and temperature > 0):
            raise InvalidCalibration(
                f"The temperature {temperature} of the calibration must be finite and positive."
            )
        case Platt(slope, intercept) if not (math.isfinite(slope) and math.isfinite(intercept)):
            raise InvalidCalibration(
                f"Slope {slope} and intercept {intercept} of the calibration must be finite."
            )
        case Isotonic(x, y):
            if not x or len(x) != len(y) or not all(map(math.isfinite, (*x, *y))):
                raise InvalidCalibration(
                    "An isotonic calibration needs the same number of finite x and y, at least one each."
                )
            if any(a >= b for a, b in pairwise(x)) or any(a > b for a, b in pairwise(y)):
                raise InvalidCalibration("An isotonic calibration needs increasing x and non-decreasing y.")
            if min(y) < 0 or max(y) > 1:
                raise InvalidCalibration("An isotonic calibration needs y within 0 to 1.")
