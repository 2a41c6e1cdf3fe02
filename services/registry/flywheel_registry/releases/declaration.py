"""Checks on the declaration of a release, made before anything is stored."""

from __future__ import annotations

import math
from itertools import pairwise

from flywheel_common.names import check_id
from flywheel_registry.policies.rollout_policy import LONGEST_SECONDS
from flywheel_registry.releases.errors import InvalidCalibration, InvalidFallback, InvalidThreshold
from flywheel_registry.releases.release import Isotonic, Platt, Release


def check_release(release: Release) -> None:
    """Raise InvalidThreshold, InvalidCalibration, InvalidFallback, or InvalidId for a segment key."""
    if not 0 <= release.threshold <= 1:
        raise InvalidThreshold(
            f"threshold {release.threshold:g} is not a probability: it must lie in 0 to 1."
        )
    _check_calibration(release.calibration)
    if release.default_score is not None and not 0 <= release.default_score <= 1:
        raise InvalidFallback(f"fallback.default_score {release.default_score:g} must lie in 0 to 1.")
    age = release.cached_max_age_seconds
    if age is not None and not 0 < age <= LONGEST_SECONDS:
        raise InvalidFallback("fallback.cached_max_age must be positive and at most ten years, or unset.")
    for key in release.segment_keys:
        check_id(key, "segment_keys")


def _check_calibration(calibration: Platt | Isotonic | None) -> None:
    match calibration:
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
