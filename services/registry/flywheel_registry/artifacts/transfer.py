"""Uploads and downloads artifacts.

The key in the object store is derived from the digest; clients name a declared file, never a key.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

from flywheel_common.clock import Clock
from flywheel_common.errors import NotFound
from flywheel_common.postgres.transactions import Store
from flywheel_common.storage.objects import ObjectStore, content_key
from flywheel_registry.artifacts.check import VersionCheck
from flywheel_registry.artifacts.errors import DigestMismatch, NotDeclared
from flywheel_registry.artifacts.verification import CHUNK_BYTES, stored_intact, verified
from flywheel_registry.audit.journal import Journal
from flywheel_registry.models.declaration import check_artifact_name
from flywheel_registry.models.errors import ArtifactsPending
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.version import Artifact, ArtifactState, ModelVersion


class ArtifactTransfer:
    """Uploads and downloads artifacts.

    `prepare` makes the object store writable (creates its bucket); it is called until it has succeeded once.
    """

    def __init__(
        self,
        store: Store[ModelRecords],
        objects: ObjectStore,
        clock: Clock,
        prepare: Callable[[], Awaitable[None]],
        checks: VersionCheck,
    ) -> None:
        self._store = store
        self._objects = objects
        self._clock = clock
        self._prepare = prepare
        self._prepared = False
        self._checks = checks

    async def upload(
        self, name: VersionName, artifact_name: str, chunks: AsyncIterator[bytes], by: str
    ) -> ModelVersion:
        """Store a declared file's bytes; the last file's upload also checks the version.

        The bytes become visible only when all of them match, also when the file is stored already. Raises
        InvalidArtifactName, NotDeclared, DigestMismatch, TooLarge, and Unavailable when the bytes are stored
        and the check has no answer of the feature service: another upload or CheckModelVersion repeats it.
        """
        declared = await self._declared(name, artifact_name)
        if not self._prepared:
            await self._prepare()
            self._prepared = True
        async with self._store.reading() as records:
            known = await records.digest_stored(declared.sha256)
        key, received = content_key(declared.sha256), verified(declared, chunks)
        if known and await stored_intact(self._objects, key, declared):
            async for _ in received:
                pass
        else:
            await self._objects.put_stream(key, received)
        async with self._store.transaction() as records:
            await lock_model(records, name.parent)
            version = await find_version(records, name)
            if not any(a.name == artifact_name and a.stored for a in version.artifacts):
                await records.mark_stored(name.parent, name.number, artifact_name, declared.sha256)
                version = await find_version(records, name)
                journal = Journal(records, name.parent, self._clock.now(), by)
                await journal.write(
                    "UPLOAD", version.name, reason=f"{artifact_name} sha256 {declared.sha256}"
                )
        if version.artifact_state is ArtifactState.STORED:
            version = await self._checks.check(name, by)
        return version

    async def download(self, name: VersionName, artifact_name: str) -> AsyncIterator[bytes]:
        """Yield a file's bytes.

        The last chunk is held back until the digest of all bytes matches, so a complete download is always
        correct. Raises InvalidArtifactName, NotDeclared, ArtifactsPending, DigestMismatch.
        """
        declared = await self._declared(name, artifact_name)
        if not declared.stored:
            raise ArtifactsPending(f"Bytes of {artifact_name} of {name} are missing: upload them first.")
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
            raise _corrupt(name, artifact_name, "the object store has no such object") from None
        if size != declared.size_bytes or sha.hexdigest() != declared.sha256:
            raise _corrupt(name, artifact_name, "the stored bytes are not the declared ones")
        yield held

    async def _declared(self, name: VersionName, artifact_name: str) -> Artifact:
        check_artifact_name(artifact_name)
        async with self._store.reading() as records:
            version = await find_version(records, name)
        for artifact in version.artifacts:
            if artifact.name == artifact_name:
                return artifact
        declared = ", ".join(a.name for a in version.artifacts)
        raise NotDeclared(f"{name} declares no {artifact_name!r}, only {declared}.")


def _corrupt(name: VersionName, artifact: str, what: str) -> DigestMismatch:
    return DigestMismatch(
        f"{artifact} of {name} cannot be downloaded: {what}. Upload it again.", artifact=artifact
    )
