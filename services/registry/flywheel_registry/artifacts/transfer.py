"""Uploads and downloads artifacts.

The key in the object store is derived from the digest; clients name a declared file, never a key.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

from flywheel_common.clock import Clock
from flywheel_common.errors import NotFound
from flywheel_common.postgres.transactions import Store
from flywheel_common.storage.objects import ObjectStore, content_key
from flywheel_common.storage.part_buffers import PartBuffers
from flywheel_registry.artifacts.blocks import BlockHasher, checked_range
from flywheel_registry.artifacts.check import VersionCheck
from flywheel_registry.artifacts.errors import (
    ArtifactCollected,
    DigestMismatch,
    InvalidRange,
    NotDeclared,
)
from flywheel_registry.artifacts.verification import CHUNK_BYTES, stored_intact, verified
from flywheel_registry.audit.journal import Journal
from flywheel_registry.models.declaration import check_artifact_name
from flywheel_registry.models.errors import ArtifactsPending
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.version import Artifact, ArtifactState, ModelVersion

READS_AT_ONCE = 2
"""How many stored files uploads read at once; each read holds a chunk and a connection to the store."""


class ArtifactTransfer:
    """Uploads and downloads artifacts.

    `prepare` makes the object store writable (creates its bucket); it is called until it has succeeded once.
    All uploads share `buffers`; an upload that waits for one makes its caller wait too.
    """

    def __init__(
        self,
        store: Store[ModelRecords],
        objects: ObjectStore,
        clock: Clock,
        prepare: Callable[[], Awaitable[None]],
        checks: VersionCheck,
        buffers: PartBuffers,
    ) -> None:
        self._store = store
        self._objects = objects
        self._clock = clock
        self._prepare = prepare
        self._prepared = False
        self._checks = checks
        self.buffers = buffers
        self._reading = asyncio.Semaphore(READS_AT_ONCE)

    async def prepare(self) -> None:
        """Make the object store writable."""
        if not self._prepared:
            await self._prepare()
            self._prepared = True

    async def upload(
        self, name: VersionName, artifact_name: str, chunks: AsyncIterator[bytes], by: str
    ) -> ModelVersion:
        """Store a declared file's bytes; the last file's upload also checks the version.

        The bytes become visible only when all of them match, also when the file is stored already. Raises
        InvalidArtifactName, NotDeclared, DigestMismatch, TooLarge, StreamTooSlow, ArtifactCollected, and
        Unavailable when the bytes are stored and the check has no answer of the feature service: another
        upload or CheckModelVersion repeats it.
        """
        declared = await self.declared(name, artifact_name)
        await self.prepare()
        async with self._store.reading() as records:
            known = await records.digest_stored(declared.sha256)
        key, blocks = content_key(declared.sha256), BlockHasher()
        received = verified(declared, chunks, also=blocks.add)
        if known and await self._intact(key, declared):
            await self._read(received)
        else:
            await self._objects.put_stream(key, received, self.buffers)
        async with self._store.transaction() as records:
            await lock_model(records, name.parent)
            # The collection holds this lock while it deletes the bytes of a digest that nothing declares.
            await records.lock_digest(declared.sha256)
            if await self._objects.head(key) is None:
                raise ArtifactCollected(f"{artifact_name} was collected during its upload: upload it again.")
            await records.put_block_digests(declared.sha256, blocks.digests())
            version = await find_version(records, name)
            if not any(a.name == artifact_name and a.stored for a in version.artifacts):
                await records.mark_stored(name.parent, name.number, artifact_name, declared.sha256)
                version = await find_version(records, name)
                journal = Journal(records, name.parent, self._clock.now(), by)
                await journal.write(
                    "UPLOAD", version.name, reason=f"{artifact_name} sha256 {declared.sha256}"
                )
        return await self._check(name, version, by)

    async def _intact(self, key: str, declared: Artifact) -> bool:
        async with self._reading:
            return await stored_intact(self._objects, key, declared)

    async def _read(self, chunks: AsyncIterator[bytes]) -> None:
        """Read all chunks, in turns with other uploads."""
        ended = False
        while not ended:
            _, ended = await self.buffers.filled(chunks)
            self.buffers.give_back()

    async def checked(self, name: VersionName, by: str) -> ModelVersion:
        """Return the version, checked when all its files are stored and the check has not ended."""
        async with self._store.reading() as records:
            version = await find_version(records, name)
        return await self._check(name, version, by)

    async def _check(self, name: VersionName, version: ModelVersion, by: str) -> ModelVersion:
        if version.artifact_state is ArtifactState.STORED:
            return await self._checks.check(name, by)
        return version

    async def download(self, name: VersionName, artifact_name: str) -> AsyncIterator[bytes]:
        """Yield a file's bytes.

        The last chunk is held back until the digest of all bytes matches, so a complete download is always
        correct. Raises InvalidArtifactName, NotDeclared, ArtifactsPending, DigestMismatch.
        """
        declared = await self._stored(name, artifact_name)
        async for chunk in self._whole(declared):
            yield chunk

    async def download_range(
        self, name: VersionName, artifact_name: str, offset: int, length: int
    ) -> AsyncIterator[bytes]:
        """Yield `length` bytes from `offset` on (0: all that follow), each block checked before its bytes.

        The first range of a file that was stored before there were digests of blocks reads all of it. Raises
        InvalidRange and the errors of `download`.
        """
        declared = await self._stored(name, artifact_name)
        length = length or declared.size_bytes - offset
        if offset > declared.size_bytes or offset + length > declared.size_bytes:
            raise InvalidRange(
                f"{artifact_name} has {declared.size_bytes} bytes: {length} from {offset} on exceed it."
            )
        async with self._store.reading() as records:
            digests = await records.block_digests(declared.sha256)
        if digests is None:
            blocks = BlockHasher()
            async for chunk in self._whole(declared):
                blocks.add(chunk)
            digests = blocks.digests()
            async with self._store.transaction() as records:
                await records.put_block_digests(declared.sha256, digests)
        key = content_key(declared.sha256)
        try:
            async for data in checked_range(self._objects, key, declared, digests, offset, length):
                yield data
        except NotFound:
            raise _corrupt(artifact_name, "the object store has no such object") from None

    async def _whole(self, declared: Artifact) -> AsyncIterator[bytes]:
        sha, size, held = hashlib.sha256(), 0, b""
        try:
            async for chunk in self._objects.stream(content_key(declared.sha256), CHUNK_BYTES):
                if held:
                    yield held
                sha.update(chunk)
                size += len(chunk)
                if size > declared.size_bytes:
                    break
                held = chunk
        except NotFound:
            raise _corrupt(declared.name, "the object store has no such object") from None
        if size != declared.size_bytes or sha.hexdigest() != declared.sha256:
            raise _corrupt(declared.name, "the stored bytes are not the declared ones")
        yield held

    async def _stored(self, name: VersionName, artifact_name: str) -> Artifact:
        declared = await self.declared(name, artifact_name)
        if not declared.stored:
            raise ArtifactsPending(f"Bytes of {artifact_name} of {name} are missing: upload them first.")
        return declared

    async def declared(self, name: VersionName, artifact_name: str) -> Artifact:
        """Return a declared file. Raises UnknownModelVersion, InvalidArtifactName, NotDeclared."""
        check_artifact_name(artifact_name)
        async with self._store.reading() as records:
            version = await find_version(records, name)
        for artifact in version.artifacts:
            if artifact.name == artifact_name:
                return artifact
        declared = ", ".join(a.name for a in version.artifacts)
        raise NotDeclared(f"{name} declares no {artifact_name!r}, only {declared}.")


def _corrupt(artifact: str, what: str) -> DigestMismatch:
    return DigestMismatch(f"{artifact} cannot be downloaded: {what}. Upload it again.", artifact=artifact)
