"""Checks on the declaration of a model version, made before anything is stored."""

from __future__ import annotations

import math
import re

from flywheel_registry.models.errors import (
    InvalidArtifactName,
    InvalidArtifacts,
    InvalidDigest,
    InvalidGoldenRows,
    InvalidMetric,
    InvalidSignature,
    TooLarge,
)
from flywheel_registry.models.version import Artifact, ModelVersion

MAX_ARTIFACTS = 100
MAX_INPUTS = 10_000
MAX_GOLDEN_BYTES = 4 * 1024 * 1024
FLOAT32_BYTES = 4

_ARTIFACT_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_artifact_name(name: str) -> str:
    """Return the name, which must be a file name and not a path. Raises InvalidArtifactName."""
    if _ARTIFACT_NAME.fullmatch(name) is None or set(name) == {"."}:
        raise InvalidArtifactName(
            f"{name[:80]!r} is not a valid artifact name: it must match [A-Za-z0-9._-]{{1,128}}, must not "
            "consist of dots only, and must not be a path."
        )
    return name


def check_artifact(artifact: Artifact, max_bytes: int) -> None:
    """Raise InvalidArtifactName, InvalidDigest or TooLarge unless the declared file is valid."""
    check_artifact_name(artifact.name)
    if _SHA256.fullmatch(artifact.sha256) is None:
        raise InvalidDigest(f"sha256 of artifact {artifact.name} must be 64 lower-case hex digits.")
    if artifact.size_bytes > max_bytes:
        raise TooLarge(
            f"Artifact {artifact.name} has {artifact.size_bytes} bytes, the limit is {max_bytes}.",
            limit_bytes=max_bytes,
        )


def check_version(version: ModelVersion, max_artifact_bytes: int) -> None:
    """Raise the error of the first invalid part: artifacts, signature, golden rows, metrics."""
    names = [artifact.name for artifact in version.artifacts]
    if not 1 <= len(names) <= MAX_ARTIFACTS:
        raise InvalidArtifacts(f"Declare 1 to {MAX_ARTIFACTS} artifacts, not {len(names)}.")
    for artifact in version.artifacts:
        check_artifact(artifact, max_artifact_bytes)
    # Some file systems ignore case, so names that differ only in case count as equal.
    if len({name.lower() for name in names}) != len(names):
        raise InvalidArtifacts(
            "Two artifacts have the same name: choose names that differ in more than case."
        )
    _check_signature(version)
    _check_golden_rows(version)
    for metric, value in version.metrics.items():
        if not metric or not math.isfinite(value):
            raise InvalidMetric(f"Metric {metric!r} is {value}: a metric needs a name and a finite value.")


def _check_signature(version: ModelVersion) -> None:
    inputs = [i.name for i in version.signature]
    if len(inputs) > MAX_INPUTS or not all(inputs) or len(set(inputs)) != len(inputs):
        raise InvalidSignature(f"The signature needs unique, non-empty input names, at most {MAX_INPUTS}.")
    for i in version.signature:
        if len(set(i.vocabulary)) != len(i.vocabulary):
            raise InvalidSignature(f"The vocabulary of input {i.name} repeats a value: list each value once.")


def _check_golden_rows(version: ModelVersion) -> None:
    golden, inputs = version.golden_rows, len(version.signature)
    if len(golden.inputs) > MAX_GOLDEN_BYTES:
        raise InvalidGoldenRows(f"Golden rows have more than {MAX_GOLDEN_BYTES} bytes: send fewer rows.")
    expected = golden.row_count * inputs * FLOAT32_BYTES, golden.row_count * FLOAT32_BYTES
    if (len(golden.inputs), len(golden.scores)) != expected:
        raise InvalidGoldenRows(
            f"{golden.row_count} golden rows of {inputs} inputs need {expected[0]} bytes of inputs and "
            f"{expected[1]} bytes of scores (float32), not {len(golden.inputs)} and {len(golden.scores)}."
        )
    if not (math.isfinite(golden.tolerance) and golden.tolerance >= 0):
        raise InvalidGoldenRows(
            f"The tolerance of golden rows is {golden.tolerance}: it must be finite and at least 0."
        )
