"""Reads artifacts from the object store, verifies their digests, and describes them to the registry."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import artifact_key
from flywheel_job.outcome import Artifact
from flywheel_trainer.jobs.errors import DigestMismatch


async def read_verified(objects: ObjectStore, sha256: str) -> bytes:
    """The artifact with this digest. Raises DigestMismatch if the stored bytes differ."""
    data = await objects.get(artifact_key(sha256))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DigestMismatch(f"The stored bytes of artifact {sha256[:12]} do not match their digest.")
    return data


def version_fields(report: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The fields of a model version that its report and its files determine."""
    golden = report["golden"]
    return {
        "framework": report["framework"],
        "inputs": report["inputs"],
        "artifacts": [(a.name, a.size_bytes, a.sha256) for a in artifacts.values()],
        "golden_rows": golden["row_count"],
        "golden_inputs": base64.b64decode(golden["inputs"]),
        "golden_scores": base64.b64decode(golden["scores"]),
        "parent_version": report.get("warm_started_from", ""),
    }
