"""What a version or release must say about itself before anything is stored or any storage is asked."""

from __future__ import annotations

import math
import re
from itertools import pairwise

from flywheel_common.errors import InvalidArgument
from flywheel_common.names import check_id
from flywheel_registry.policy import LONGEST_SECONDS
from flywheel_registry.resources import Artifact, Isotonic, ModelVersion, Platt, Release

MAX_ARTIFACTS = 100
MAX_INPUTS = 10_000
MAX_GOLDEN_BYTES = 4 * 1024 * 1024
FLOAT32_BYTES = 4

_ARTIFACT_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_artifact_name(name: str) -> str:
    """The name itself: a file name, never a path. Raises InvalidArgument INVALID_ARTIFACT_NAME."""
    if _ARTIFACT_NAME.fullmatch(name) is None or set(name) == {"."}:
        raise InvalidArgument(
            f"{name[:80]!r} is not a valid artifact name: it must match [A-Za-z0-9._-]{{1,128}} and not be only dots; it is a name, not a path.",
            reason="INVALID_ARTIFACT_NAME",
        )
    return name


def check_artifact(artifact: Artifact, max_bytes: int) -> None:
    """Raises InvalidArgument: INVALID_ARTIFACT_NAME, INVALID_DIGEST, TOO_LARGE."""
    check_artifact_name(artifact.name)
    if _SHA256.fullmatch(artifact.sha256) is None:
        raise InvalidArgument(
            f"sha256 of artifact {artifact.name} must be 64 lower-case hex digits.", reason="INVALID_DIGEST"
        )
    if artifact.size_bytes > max_bytes:
        raise InvalidArgument(
            f"Artifact {artifact.name} has {artifact.size_bytes} bytes, the limit is {max_bytes}.",
            reason="TOO_LARGE",
            limit_bytes=max_bytes,
        )


def check_version(version: ModelVersion, max_artifact_bytes: int) -> None:
    """Raises InvalidArgument naming the first thing that is wrong."""
    names = [artifact.name for artifact in version.artifacts]
    if not 1 <= len(names) <= MAX_ARTIFACTS:
        raise InvalidArgument(
            f"Declare 1 to {MAX_ARTIFACTS} artifacts, not {len(names)}.", reason="INVALID_ARTIFACTS"
        )
    for artifact in version.artifacts:
        check_artifact(artifact, max_artifact_bytes)
    # Some file systems fold case: two names must differ by more than that.
    if len({name.lower() for name in names}) != len(names):
        raise InvalidArgument("Two artifacts have the same name.", reason="INVALID_ARTIFACTS")
    inputs = [i.name for i in version.signature]
    if len(inputs) > MAX_INPUTS or not all(inputs) or len(set(inputs)) != len(inputs):
        raise InvalidArgument(
            f"The signature must have unique, non-empty input names, at most {MAX_INPUTS}.",
            reason="INVALID_SIGNATURE",
        )
    for i in version.signature:
        if len(set(i.vocabulary)) != len(i.vocabulary):
            raise InvalidArgument(
                f"The vocabulary of input {i.name} holds a value twice.", reason="INVALID_SIGNATURE"
            )
    _check_golden_rows(version)
    for metric, value in version.metrics.items():
        if not metric or not math.isfinite(value):
            raise InvalidArgument(
                f"Metric {metric!r} is {value}: metrics have a name and a finite value.",
                reason="INVALID_METRIC",
            )


def _check_golden_rows(version: ModelVersion) -> None:
    golden, inputs = version.golden_rows, len(version.signature)
    if len(golden.inputs) > MAX_GOLDEN_BYTES:
        raise InvalidArgument(
            f"Golden rows have more than {MAX_GOLDEN_BYTES} bytes: send fewer rows.",
            reason="INVALID_GOLDEN_ROWS",
        )
    expected = golden.row_count * inputs * FLOAT32_BYTES, golden.row_count * FLOAT32_BYTES
    if (len(golden.inputs), len(golden.scores)) != expected:
        raise InvalidArgument(
            f"{golden.row_count} golden rows of {inputs} inputs need {expected[0]} bytes of inputs and {expected[1]} of scores "
            f"(float32), not {len(golden.inputs)} and {len(golden.scores)}.",
            reason="INVALID_GOLDEN_ROWS",
        )
    if not (math.isfinite(golden.tolerance) and golden.tolerance >= 0):
        raise InvalidArgument(
            "The tolerance of golden rows must be finite and not negative.", reason="INVALID_GOLDEN_ROWS"
        )


def check_release(release: Release) -> None:
    """Raises InvalidArgument: INVALID_THRESHOLD, INVALID_CALIBRATION, INVALID_FALLBACK, INVALID_ID."""
    if not 0 <= release.threshold <= 1:
        raise InvalidArgument(
            f"threshold {release.threshold:g} is no probability: it must lie in 0 to 1.",
            reason="INVALID_THRESHOLD",
        )
    match release.calibration:
        case Platt(slope, intercept) if not (math.isfinite(slope) and math.isfinite(intercept)):
            raise InvalidArgument(
                "Slope and intercept of the calibration must be finite.", reason="INVALID_CALIBRATION"
            )
        case Isotonic(x, y):
            if not x or len(x) != len(y) or not all(map(math.isfinite, (*x, *y))):
                raise InvalidArgument(
                    "An isotonic calibration needs equally many finite x and y, at least one.",
                    reason="INVALID_CALIBRATION",
                )
            if any(a >= b for a, b in pairwise(x)) or any(a > b for a, b in pairwise(y)):
                raise InvalidArgument(
                    "An isotonic calibration needs rising x and non-falling y.", reason="INVALID_CALIBRATION"
                )
            if min(y) < 0 or max(y) > 1:
                raise InvalidArgument(
                    "An isotonic calibration needs y within 0 to 1.", reason="INVALID_CALIBRATION"
                )
    if release.default_score is not None and not 0 <= release.default_score <= 1:
        raise InvalidArgument("fallback.default_score must lie in 0 to 1.", reason="INVALID_FALLBACK")
    if (
        release.cached_max_age_seconds is not None
        and not 0 < release.cached_max_age_seconds <= LONGEST_SECONDS
    ):
        raise InvalidArgument(
            "fallback.cached_max_age must be positive and at most ten years, or unset.",
            reason="INVALID_FALLBACK",
        )
    for key in release.segment_keys:
        check_id(key, "segment_keys")
