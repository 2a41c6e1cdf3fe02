"""Digests of the blocks of a file, by which a range of it is checked."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from flywheel_common.storage.objects import ObjectStore
from flywheel_registry.artifacts.errors import DigestMismatch
from flywheel_registry.artifacts.verification import CHUNK_BYTES
from flywheel_registry.models.version import Artifact

BLOCK_BYTES = 1024 * 1024
DIGEST_BYTES = 32


class BlockHasher:
    """Collects the SHA-256 of each block while bytes pass."""

    def __init__(self) -> None:
        self._done = bytearray()
        self._sha = hashlib.sha256()
        self._filled = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes of the file."""
        view = memoryview(data)
        while view:
            part = view[: BLOCK_BYTES - self._filled]
            self._sha.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._end_block()

    def digests(self) -> bytes:
        """Return the digests of all blocks, one after the other; call it once, at the end."""
        if self._filled:
            self._end_block()
        return bytes(self._done)

    def _end_block(self) -> None:
        self._done += self._sha.digest()
        self._sha, self._filled = hashlib.sha256(), 0


async def checked_range(
    objects: ObjectStore, key: str, declared: Artifact, digests: bytes, offset: int, length: int
) -> AsyncIterator[bytes]:
    """Yield `length` bytes from `offset` on; each block is checked before any of its bytes.

    Raises DigestMismatch.
    """
    block, end = offset // BLOCK_BYTES, offset + length
    async with aclosing(_blocks(objects.stream(key, CHUNK_BYTES, block * BLOCK_BYTES))) as blocks:
        async for data in blocks:
            start = block * BLOCK_BYTES
            wanted = digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
            expected = min(BLOCK_BYTES, declared.size_bytes - start)
            if len(data) != expected or hashlib.sha256(data).digest() != wanted:
                break
            yield data[max(0, offset - start) : end - start]
            block += 1
            if block * BLOCK_BYTES >= end:
                return
    raise DigestMismatch(
        f"Block {block} of {declared.name} is not the declared one: upload the file again.",
        artifact=declared.name,
    )


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Cut a stream into whole blocks; only the last one is shorter."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        while len(held) >= BLOCK_BYTES:
            yield bytes(held[:BLOCK_BYTES])
            del held[:BLOCK_BYTES]
    if held:
        yield bytes(held)
