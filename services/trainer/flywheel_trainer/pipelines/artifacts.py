"""Artifacts on the object store, by digest."""

from __future__ import annotations

import hashlib

from flywheel_common.errors import DataLoss
from flywheel_common.storage.objects import ObjectStore


async def read_verified(objects: ObjectStore, sha256: str) -> bytes:
    """An artifact by digest. Raises DataLoss DIGEST_MISMATCH when its bytes are others."""
    data = await objects.get(artifact_key(sha256))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataLoss(
            f"The bytes of artifact {sha256[:12]} do not match their digest.", reason="DIGEST_MISMATCH"
        )
    return data


def artifact_key(sha256: str) -> str:
    return f"artifacts/{sha256[:2]}/{sha256}"
