"""Source archives of training code, stored under their digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator

from flywheel_common.storage.objects import ObjectStore, content_key
from flywheel_trainer.jobs.errors import InvalidSource, UnknownSource

MAX_BYTES = 64 * 1024 * 1024
PREFIX = "sources/"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def source_key(sha256: str) -> str:
    return PREFIX + content_key(sha256)


class Sources:
    """Stores archives, and finds them again. An archive is unpacked only inside of a job."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def upload(self, sha256: str, size: int, data: AsyncIterator[bytes]) -> None:
        """Store the bytes, of which at most `size` are in memory. Raises InvalidSource."""
        if _SHA256.fullmatch(sha256) is None:
            raise InvalidSource("sha256 must be 64 lower-case hexadecimal digits.")
        if not 0 < size <= MAX_BYTES:
            raise InvalidSource(f"The archive has {size} bytes; 1 to {MAX_BYTES} are allowed.")
        content = bytearray()
        async for part in data:
            content += part
            if len(content) > size:
                raise InvalidSource(f"The archive has more than the {size} bytes that were announced.")
        found = hashlib.sha256(content).hexdigest()
        if len(content) != size or found != sha256:
            raise InvalidSource(
                f"The archive has {len(content)} bytes with the digest {found}; "
                f"announced were {size} bytes with {sha256}."
            )
        stored = await self._objects.head(source_key(sha256))
        if stored is None or stored.size != size:
            await self._objects.put(source_key(sha256), bytes(content))

    async def require(self, sha256: str) -> None:
        """Raises UnknownSource unless the archive is stored."""
        if await self._objects.head(source_key(sha256)) is None:
            raise UnknownSource(f"No source archive with the digest {sha256} was uploaded.")
