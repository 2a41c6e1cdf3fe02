"""Names of a training job's files, and their content-addressed keys on S3."""

from __future__ import annotations

from flywheel_common.storage.objects import digest_key

REPORT, MODEL, WEIGHTS = "report.json", "model.onnx", "weights.pt"
ARTIFACTS = "artifacts"
"""Prefix of all artifacts in the trainer's bucket."""


def artifact_key(sha256: str, prefix: str = ARTIFACTS) -> str:
    """Key of the bytes with this SHA-256 (hex) under `prefix`."""
    return digest_key(sha256, prefix)
