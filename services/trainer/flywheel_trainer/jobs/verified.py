"""Reads artifacts from the object store and verifies their digests."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import artifact_key
from flywheel_trainer.jobs.errors import DigestMismatch


async def read_verified(objects: ObjectStore, sha256: str) -> bytes:
    """The artifact with this digest, a small one. Raises DigestMismatch if the stored bytes differ."""
    return b"".join([piece async for piece in stream_verified(objects, sha256)])


async def stream_verified(objects: ObjectStore, sha256: str) -> AsyncIterator[bytes]:
    """The artifact with this digest in pieces. Raises DigestMismatch at their end if they differ."""
    found = hashlib.sha256()
    async for piece in objects.stream(artifact_key(sha256)):
        found.update(piece)
        yield piece
    if found.hexdigest() != sha256:
        raise DigestMismatch(f"The stored bytes of artifact {sha256[:12]} do not match their digest.")
