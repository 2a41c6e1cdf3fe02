"""Artifact bytes in and out. The server chooses the key, from the digest; a client names only a declared file."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

from flywheel_common.clock import Clock
from flywheel_common.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from flywheel_common.storage.objects import ObjectStore, content_key
from flywheel_registry.absent import find_version, lock_model
from flywheel_registry.changes import Changes
from flywheel_registry.declaration import check_artifact_name
from flywheel_registry.names import VersionName
from flywheel_registry.ports import Store
from flywheel_registry.resources import Artifact, ArtifactState, ModelVersion

CHUNK_BYTES = 1024 * 1024
"""Largest chunk on the wire, either way."""


class Transfers:
    """`prepare` makes sure that the object store can be written to (its bucket exists); asked until it succeeds once."""

    def __init__(
        self, store: Store, objects: ObjectStore, clock: Clock, prepare: Callable[[], Awaitable[None]]
    ) -> None:
        self._store = store
        self._prepare = prepare
        self._prepared = False
        self._objects = objects
        self._clock = clock

    async def upload(
        self, name: VersionName, artifact_name: str, chunks: AsyncIterator[bytes], by: str
    ) -> ModelVersion:
        """Takes a declared file's bytes; the version is READY with the last one. The whole file is checked before the
        store makes it visible: a wrong byte keeps nothing. Uploading again what is there is checked all the same.
        Raises DataLoss DIGEST_MISMATCH, FailedPrecondition NOT_DECLARED, InvalidArgument TOO_LARGE."""
        declared = await self._declared(name, artifact_name)
        if not self._prepared:
            await self._prepare()
            self._prepared = True
        async with self._store.reading() as records:
            known = await records.digest_stored(declared.sha256)
        checked = _checked(declared, chunks)
        key = content_key(declared.sha256)
        if known and await self._intact(key, declared):
            async for _ in checked:
                pass
        else:
            await self._objects.put_stream(key, checked)
        async with self._store.transaction() as records:
            await lock_model(records, name.parent)
            before = await find_version(records, name)
            if any(a.name == artifact_name and a.stored for a in before.artifacts):
                return before
            await records.mark_stored(name.parent, name.number, artifact_name, declared.sha256)
            version = await find_version(records, name)
            changes = Changes(records, name.parent, self._clock.now(), by)
            await changes.note("UPLOAD", version.name, reason=f"{artifact_name} sha256 {declared.sha256}")
            if version.artifact_state is ArtifactState.READY:
                await changes.note(
                    "READY", version.name, from_state=ArtifactState.PENDING, to_state=ArtifactState.READY
                )
        return version

    async def _intact(self, key: str, declared: Artifact) -> bool:
        """Whether the stored bytes are those declared: an upload is also the way to repair them."""
        sha = hashlib.sha256()
        try:
            async for chunk in self._objects.stream(key, CHUNK_BYTES):
                sha.update(chunk)
        except NotFound:
            return False
        return sha.hexdigest() == declared.sha256

    async def download(self, name: VersionName, artifact_name: str) -> AsyncIterator[bytes]:
        """The file's bytes. The last chunk is held back until the digest of all has matched, so that whoever got the
        whole file got the right one. Raises DataLoss DIGEST_MISMATCH, FailedPrecondition NOT_DECLARED, ARTIFACTS_PENDING."""
        declared = await self._declared(name, artifact_name)
        if not declared.stored:
            raise FailedPrecondition(
                f"Bytes of {artifact_name} of {name} are missing: upload them first.",
                reason="ARTIFACTS_PENDING",
            )
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
            raise _corrupt(name, artifact_name, "the object store has lost it") from None
        if size != declared.size_bytes or sha.hexdigest() != declared.sha256:
            raise _corrupt(name, artifact_name, "the stored bytes are not those declared")
        yield held

    async def _declared(self, name: VersionName, artifact_name: str) -> Artifact:
        check_artifact_name(artifact_name)
        async with self._store.reading() as records:
            version = await find_version(records, name)
        for artifact in version.artifacts:
            if artifact.name == artifact_name:
                return artifact
        declared = ", ".join(a.name for a in version.artifacts)
        raise FailedPrecondition(
            f"{name} declares no {artifact_name!r}, only {declared}.", reason="NOT_DECLARED"
        )


async def _checked(declared: Artifact, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks, as long as they can still become the declared bytes; raises before the end if they did not."""
    sha, size = hashlib.sha256(), 0
    async for chunk in chunks:
        if len(chunk) > CHUNK_BYTES:
            raise InvalidArgument(
                f"A chunk has {len(chunk)} bytes: send at most {CHUNK_BYTES}.",
                reason="TOO_LARGE",
                limit_bytes=CHUNK_BYTES,
            )
        size += len(chunk)
        if size > declared.size_bytes:
            break
        sha.update(chunk)
        yield chunk
    if size != declared.size_bytes or sha.hexdigest() != declared.sha256:
        what = (
            f"more than the declared {declared.size_bytes} bytes"
            if size > declared.size_bytes
            else f"{size} bytes, sha256 {sha.hexdigest()}"
        )
        raise DataLoss(
            f"{declared.name} arrived as {what}; declared are {declared.size_bytes} bytes, sha256 {declared.sha256}. Nothing was kept: send the right bytes.",
            reason="DIGEST_MISMATCH",
        )


def _corrupt(name: VersionName, artifact: str, what: str) -> DataLoss:
    return DataLoss(
        f"{artifact} of {name} cannot be served: {what}. Upload it again.",
        reason="DIGEST_MISMATCH",
        artifact=artifact,
    )
