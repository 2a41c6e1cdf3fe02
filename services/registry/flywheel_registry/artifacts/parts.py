"""Uploads in parts, which go on where they broke off.

A part is an object of its own until the upload is complete. Its key holds its number and digest, so what is
stored of an upload is what the object store lists: no process has to remember it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from flywheel_common.storage.objects import ObjectStore
from flywheel_registry.artifacts.errors import InvalidPart, PartsMissing
from flywheel_registry.artifacts.transfer import READS_AT_ONCE, ArtifactTransfer
from flywheel_registry.artifacts.verification import CHUNK_BYTES, verified
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.version import Artifact, ModelVersion

PART_BYTES = 4 * 1024 * 1024
PREFIX = "uploads/"
LISTED_PARTS = 20
"""Missing parts that an error names."""
_SHA = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Upload:
    """What is stored of an upload: number of a part → its digest."""

    declared: Artifact
    parts: dict[int, str] = field(default_factory=dict)

    @property
    def part_count(self) -> int:
        """The number of parts of the whole file."""
        return -(-self.declared.size_bytes // PART_BYTES)


class PartUploads:
    """Takes files in parts. `transfer` stores the joined file."""

    def __init__(self, transfer: ArtifactTransfer, objects: ObjectStore) -> None:
        self._transfer = transfer
        self._objects = objects
        self._joining = asyncio.Semaphore(READS_AT_ONCE)

    async def status(self, name: VersionName, artifact: str) -> Upload:
        """Return what is stored of a file's parts. Raises InvalidArtifactName, NotDeclared."""
        declared = await self._transfer.declared(name, artifact)
        upload = Upload(declared)
        if not declared.stored:
            async for info in self._objects.list(_folder(name, declared)):
                number, _, sha256 = info.key.rpartition("/")[2].partition("-")
                if info.size == part_size(declared, int(number)):
                    upload.parts[int(number)] = sha256
        return upload

    async def put(
        self, name: VersionName, artifact: str, number: int, sha256: str, chunks: AsyncIterator[bytes]
    ) -> None:
        """Store a part.

        Raises InvalidArtifactName, NotDeclared, InvalidPart, DigestMismatch, TooLarge, StreamTooSlow.
        """
        declared = await self._transfer.declared(name, artifact)
        count = Upload(declared).part_count
        if number >= count or not _SHA.fullmatch(sha256):
            raise InvalidPart(
                f"{artifact} has the parts 0 to {count - 1}, and their digests are 64 lower-case hex digits; "
                f"part {number} with digest {sha256[:80]!r} is none."
            )
        part = Artifact(f"Part {number} of {artifact}", part_size(declared, number), sha256)
        await self._transfer.prepare()
        key = _key(name, declared, number, sha256)
        await self._objects.put_stream(key, verified(part, chunks), self._transfer.buffers)
        # The part with another digest, if one was sent before, was wrong.
        async for info in self._objects.list(f"{_folder(name, declared)}{number:06d}-"):
            if info.key != key:
                await self._objects.delete(info.key)

    async def complete(self, name: VersionName, artifact: str, by: str) -> ModelVersion:
        """Join the parts to the declared file and store it; then as `ArtifactTransfer.upload`.

        A file that is stored stays. If this process dies, the parts are still there: call it again. Raises
        PartsMissing and the errors of `upload`.
        """
        upload = await self.status(name, artifact)
        if upload.declared.stored:
            return await self._transfer.checked(name, by)
        missing = [n for n in range(upload.part_count) if n not in upload.parts]
        if missing:
            listed = ", ".join(map(str, missing[:LISTED_PARTS]))
            raise PartsMissing(f"{len(missing)} parts of {artifact} are missing, e.g. {listed}: send them.")
        # A join holds a connection to read with while it waits for one to write with.
        async with self._joining:
            version = await self._transfer.upload(name, artifact, self._joined(name, upload), by)
        async for info in self._objects.list(_folder(name, upload.declared)):
            await self._objects.delete(info.key)
        return version

    async def _joined(self, name: VersionName, upload: Upload) -> AsyncIterator[bytes]:
        for number in range(upload.part_count):
            key = _key(name, upload.declared, number, upload.parts[number])
            async for chunk in self._objects.stream(key, CHUNK_BYTES):
                # Not kept while the upload waits for its turn.
                taking, chunk = [chunk], b""
                yield taking.pop()


def part_size(declared: Artifact, number: int) -> int:
    """Return the size of a part in bytes."""
    return max(0, min(PART_BYTES, declared.size_bytes - number * PART_BYTES))


def _folder(name: VersionName, declared: Artifact) -> str:
    """The parts of one file of one version; another version with equal content has other parts."""
    identity = f"{name}\0{declared.name}\0{declared.sha256}"
    return f"{PREFIX}{hashlib.sha256(identity.encode()).hexdigest()}/"


def _key(name: VersionName, declared: Artifact, number: int, sha256: str) -> str:
    return f"{_folder(name, declared)}{number:06d}-{sha256}"
