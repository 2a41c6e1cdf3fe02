"""The port of an object store, and content-addressed keys."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from flywheel_common.storage.errors import InvalidObjectKey, ObjectNotFound
from flywheel_common.storage.part_buffers import PartBuffers

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class ObjectInfo:
    """Key, size in bytes and time of the last change of an object."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Digest:
    """Size in bytes and SHA-256 (hex) of written bytes."""

    size: int
    sha256: str


class ObjectStore(Protocol):
    """A store of whole objects.

    A put is atomic, reads see completed puts, and the last of two concurrent puts wins: use PostgreSQL for
    arbitration, or content-addressed keys. Lists are sorted by key, in some stores folder by folder. Deleting
    a missing key does nothing. Keys are relative, without empty, `.` or `..` parts. Raises ObjectNotFound for
    a missing key (get, stream), InvalidObjectKey, and S3Unavailable, before the deadline of the running call
    if it has one: a change may then have happened.
    """

    async def put(self, key: str, data: bytes) -> Digest: ...

    async def put_stream(
        self, key: str, chunks: AsyncIterable[bytes], buffers: PartBuffers | None = None
    ) -> int:
        """Store chunks and return their size in bytes; nothing is visible before the end of `chunks`.

        `buffers` bounds what several streams hold together; without, the stream holds one part. Raises
        StreamTooSlow while others wait for a buffer.
        """
        ...

    async def get(self, key: str) -> bytes: ...

    def stream(self, key: str, chunk_bytes: int = CHUNK_BYTES, start: int = 0) -> AsyncIterator[bytes]:
        """The bytes from `start` on, in chunks of at most `chunk_bytes`; nothing from the end on."""
        ...

    async def head(self, key: str) -> ObjectInfo | None: ...

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]: ...

    async def delete(self, key: str) -> None: ...

    async def copy(self, source: str, target: str) -> None: ...


def content_key(sha256: str) -> str:
    """The key of bytes with this digest: `sha256/ab/cd/abcd…`."""
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


async def put_content(store: ObjectStore, data: bytes, *, prefix: str = "") -> tuple[str, Digest]:
    """Stores bytes under `prefix` and their digest, unless they are there. Returns (key, digest)."""
    sha256 = hashlib.sha256(data).hexdigest()
    key = prefix + content_key(sha256)
    found = await store.head(key)
    if found is not None and found.size == len(data):
        return key, Digest(len(data), sha256)
    return key, await store.put(key, data)


def digest_key(sha256: str, prefix: str) -> str:
    """The key under `prefix` of an artifact with this digest (hex): `prefix/ab/abcd…`."""
    return f"{prefix}/{sha256[:2]}/{sha256}"


def check_key(key: str) -> str:
    """Returns the key. Raises InvalidObjectKey."""
    parts = key.split("/")
    if len(key) > 900 or "\0" in key or any(p in ("", ".", "..") or len(p.encode()) > 255 for p in parts):
        raise InvalidObjectKey(f"{key[:80]!r} is not a valid object key.")
    return key


def object_not_found(key: str) -> ObjectNotFound:
    """The error for a missing key."""
    return ObjectNotFound(f"There is no object {key!r}.", key=key)
