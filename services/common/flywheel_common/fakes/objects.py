"""An in-memory object store."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from datetime import UTC, datetime

from flywheel_common.storage.objects import CHUNK_BYTES, Digest, ObjectInfo, check_key, object_not_found
from flywheel_common.storage.part_buffers import PartBuffers


class MemoryObjectStore:
    """An `ObjectStore` in memory, for tests."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, datetime]] = {}

    async def ensure_bucket(self) -> None:
        """The bucket exists."""

    async def put(self, key: str, data: bytes) -> Digest:
        self._objects[check_key(key)] = (bytes(data), datetime.now(UTC))
        return Digest(len(data), hashlib.sha256(data).hexdigest())

    async def put_stream(
        self, key: str, chunks: AsyncIterable[bytes], buffers: PartBuffers | None = None
    ) -> int:
        check_key(key)
        source, parts, ended = aiter(chunks), [], False
        buffers = buffers or PartBuffers(1)
        while not ended:
            body, ended = await buffers.filled(source)
            parts.append(bytes(body))
            buffers.give_back()
        return (await self.put(key, b"".join(parts))).size

    async def get(self, key: str) -> bytes:
        found = self._objects.get(check_key(key))
        if found is None:
            raise object_not_found(key)
        return found[0]

    async def stream(self, key: str, chunk_bytes: int = CHUNK_BYTES, start: int = 0) -> AsyncIterator[bytes]:
        data = await self.get(key)
        for at in range(start, len(data), chunk_bytes):
            yield data[at : at + chunk_bytes]

    async def head(self, key: str) -> ObjectInfo | None:
        found = self._objects.get(check_key(key))
        return None if found is None else ObjectInfo(key, len(found[0]), found[1])

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        for key in sorted(self._objects):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self._objects[key][0]), self._objects[key][1])

    async def delete(self, key: str) -> None:
        self._objects.pop(check_key(key), None)

    async def copy(self, source: str, target: str) -> None:
        await self.put(target, await self.get(source))
