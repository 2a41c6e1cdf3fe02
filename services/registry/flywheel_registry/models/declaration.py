"""Checks on the declaration of a model version, made before anything is stored."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from flywheel_common.signature import (
    FLOAT32,
    FLOAT64,
    TENSOR_TYPES,
    OutputKind,
    OutputSpec,
    Signature,
    problems,
)
from flywheel_common.tensors import Tensor, array_of
from flywheel_registry.models.errors import (
    InvalidArtifactName,
    InvalidArtifacts,
    InvalidDigest,
    InvalidGoldenRows,
    InvalidMetric,
    InvalidSignature,
    TooLarge,
)
from flywheel_registry.models.version import Artifact, GoldenRows, ModelVersion

MAX_ARTIFACTS = 100
MAX_GOLDEN_BYTES = 4 * 1024 * 1024

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
    _check_signature(version.signature)
    _check_golden_rows(version.golden_rows, version.signature)
    for metric, value in version.metrics.items():
        if not metric or not math.isfinite(value):
            raise InvalidMetric(f"Metric {metric!r} is {value}: a metric needs a name and a finite value.")


def _check_signature(signature: Signature) -> None:
    """Raise InvalidSignature for every rule that is broken.

    A version without a signature can be declared, but its check fails.
    """
    if signature != Signature() and (found := problems(signature)):
        raise InvalidSignature(" ".join(found))


def _check_golden_rows(golden: GoldenRows, signature: Signature) -> None:
    """Raise InvalidGoldenRows unless the tensors are those of the signature, each with the same rows."""
    if not (math.isfinite(golden.tolerance) and golden.tolerance >= 0):
        raise InvalidGoldenRows(
            f"The tolerance of golden rows is {golden.tolerance}: it must be finite and at least 0."
        )
    if not golden.tensors and golden.output is None:
        return
    size = sum(len(t.data) for t in golden.tensors) + len(golden.output.data if golden.output else b"")
    if size > MAX_GOLDEN_BYTES:
        raise InvalidGoldenRows(f"Golden rows have more than {MAX_GOLDEN_BYTES} bytes: send fewer rows.")
    found = golden_problems(golden, signature)
    if found:
        raise InvalidGoldenRows(" ".join(found))


def golden_problems(golden: GoldenRows, signature: Signature) -> list[str]:
    """One sentence per difference between golden rows and the signature."""
    if golden.output is None:
        return ["The golden rows have inputs and no output."]
    rows, output = golden.row_count, signature.output
    found = [] if rows else ["The golden rows have no row."]
    wanted = {t.name: t for t in signature.input_tensors}
    given = {t.name: t for t in golden.tensors}
    if len(given) != len(golden.tensors) or given.keys() != wanted.keys():
        names = ", ".join(t.name for t in golden.tensors)
        found.append(f"The golden rows need one tensor each for {', '.join(wanted)}, not {names or 'none'}.")
    for name in given.keys() & wanted.keys():
        found += _tensor_problems(given[name], wanted[name].data_type, [(rows, *wanted[name].shape)])
    if golden.output.name != output.tensor:
        found.append(f"The golden output is {golden.output.name}, the signature reads {output.tensor}.")
    if golden.output.data_type not in (FLOAT32, FLOAT64):
        found.append("The golden output must be FLOAT32 or FLOAT64.")
    else:
        differences = _tensor_problems(golden.output, golden.output.data_type, output_shapes(output, rows))
        if not differences and not np.isfinite(array_of(golden.output)).all():
            differences = ["The golden output must be finite."]
        found += differences
    return found


def output_shapes(output: OutputSpec, rows: int) -> list[tuple[int, ...]]:
    """The shapes that an output tensor of `rows` rows may have."""
    if output.kind is OutputKind.BINARY:
        return [(rows,), (rows, 1), (rows, 2)]
    if output.kind is OutputKind.REGRESSION:
        return [(rows,), (rows, 1)]
    return [(rows, output.width)]


def _tensor_problems(tensor: Tensor, data_type: int, shapes: Sequence[tuple[int, ...]]) -> list[str]:
    if tensor.data_type != data_type:
        given = TENSOR_TYPES.get(tensor.data_type, str(tensor.data_type))
        declared = TENSOR_TYPES.get(data_type, str(data_type))
        return [f"Golden tensor {tensor.name} has type {given}, the signature {declared}."]
    if tuple(tensor.shape) not in shapes:
        allowed = " or ".join(str(list(shape)) for shape in shapes)
        return [f"Golden tensor {tensor.name} has shape {list(tensor.shape)}, it needs {allowed}."]
    try:
        array_of(tensor)
    except ValueError as error:
        return [f"Golden rows: {error}."]
    return []
