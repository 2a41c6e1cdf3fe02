"""Verifies that bytes are those that a version declares."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable

from flywheel_common.errors import NotFound
from flywheel_common.storage.objects import ObjectStore
from flywheel_registry.artifacts.errors import DigestMismatch
from flywheel_registry.models.errors import TooLarge
from flywheel_registry.models.version import Artifact

CHUNK_BYTES = 1024 * 1024
"""Largest chunk of an upload or download."""


async def verified(
    declared: Artifact, chunks: AsyncIterator[bytes], also: Callable[[bytes], None] = lambda _: None
) -> AsyncIterator[bytes]:
    """Pass chunks on, and raise DigestMismatch before the end unless they are the declared bytes.

    `also` gets each chunk. It runs in the thread that computes the digest, so that other calls go on. Raises
    TooLarge for a chunk above CHUNK_BYTES.
    """
    sha, size = hashlib.sha256(), 0

    def add(chunk: bytes) -> None:
        sha.update(chunk)
        also(chunk)

    async for chunk in chunks:
        if len(chunk) > CHUNK_BYTES:
            raise TooLarge(
                f"A chunk has {len(chunk)} bytes: send at most {CHUNK_BYTES}.", limit_bytes=CHUNK_BYTES
            )
        size += len(chunk)
        if size > declared.size_bytes:
            break
        await asyncio.to_thread(add, chunk)
        # Taken out of this frame, so that it does not keep the chunk while the upload waits for its turn.
        taking, chunk = [chunk], b""
        yield taking.pop()
    if size != declared.size_bytes or sha.hexdigest() != declared.sha256:
        too_long = size > declared.size_bytes
        received = (
            f"more than {declared.size_bytes} bytes"
            if too_long
            else f"{size} bytes, sha256 {sha.hexdigest()}"
        )
        raise DigestMismatch(
            f"{declared.name} arrived as {received}; the version declares {declared.size_bytes} bytes, "
            f"sha256 {declared.sha256}. Nothing was stored: upload the declared bytes."
        )


async def stored_intact(objects: ObjectStore, key: str, declared: Artifact) -> bool:
    """Return whether the stored bytes have the declared digest; False when there are none."""
    sha = hashlib.sha256()
    try:
        async for chunk in objects.stream(key, CHUNK_BYTES):
            sha.update(chunk)
    except NotFound:
        return False
    return sha.hexdigest() == declared.sha256
