"""Objects by key: the port, content-addressed keys, and a fake in memory held to the same contract."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from flywheel_common.storage.errors import InvalidObjectKey, ObjectNotFound

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class ObjectInfo:
    """`key` as given, `size` in bytes."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Digest:
    """Size in bytes and SHA-256 (hex) of what was written."""

    size: int
    sha256: str


class ObjectStore(Protocol):
    """Whole objects; a put is visible entirely or not at all, and the last of two racing puts wins (S3 here has no
    preconditions: let PostgreSQL arbitrate, or use content-addressed keys). Reads see completed puts. Raises
    NotFound OBJECT_NOT_FOUND for an absent key (get, stream), Unavailable S3_UNAVAILABLE when the store does not
    answer: before the running call's deadline if it has one, and then a change may have happened. delete of an absent key
    does nothing. Keys are relative, without empty, `.` or `..` parts."""

    async def put(self, key: str, data: bytes) -> Digest: ...

    async def put_stream(self, key: str, chunks: AsyncIterable[bytes]) -> Digest: ...

    async def get(self, key: str) -> bytes: ...

    def stream(self, key: str, chunk_bytes: int = CHUNK_BYTES) -> AsyncIterator[bytes]: ...

    async def head(self, key: str) -> ObjectInfo | None: ...

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]: ...

    async def delete(self, key: str) -> None: ...

    async def copy(self, source: str, target: str) -> None: ...


def content_key(sha256: str) -> str:
    """`sha256/ab/cd/abcd…`: where bytes of this digest live."""
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


async def put_content(store: ObjectStore, data: bytes, *, prefix: str = "") -> tuple[str, Digest]:
    """Stores bytes under their digest (below `prefix`); writing them again changes nothing. Returns (key, digest)."""
    sha256 = hashlib.sha256(data).hexdigest()
    key = prefix + content_key(sha256)
    found = await store.head(key)
    if found is not None and found.size == len(data):
        return key, Digest(len(data), sha256)
    return key, await store.put(key, data)


def check_key(key: str) -> str:
    """Raises InvalidArgument INVALID_OBJECT_KEY."""
    if not key or len(key) > 900 or any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise InvalidObjectKey(f"{key[:80]!r} is not a valid object key.")
    return key


def object_not_found(key: str) -> ObjectNotFound:
    """The error of an absent key."""
    return ObjectNotFound(f"There is no object {key!r}.", key=key)
