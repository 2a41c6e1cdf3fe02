"""Reads artifacts from the object store and verifies their digests."""

from __future__ import annotations

import hashlib

from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import artifact_key
from flywheel_trainer.jobs.errors import DigestMismatch


async def read_verified(objects: ObjectStore, sha256: str) -> bytes:
    """The artifact with this digest. Raises DigestMismatch if the stored bytes differ."""
    data = await objects.get(artifact_key(sha256))
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DigestMismatch(f"The stored bytes of artifact {sha256[:12]} do not match their digest.")
    return data
