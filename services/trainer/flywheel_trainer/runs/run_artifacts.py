"""Files of runs, stored under their digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator

from flywheel_common.clock import Clock
from flywheel_common.ids import Ids
from flywheel_common.storage.errors import ObjectNotFound
from flywheel_common.storage.objects import ObjectStore, content_key
from flywheel_job.outcome import Artifact
from flywheel_trainer.runs.errors import InvalidArtifact, UnknownRun, UnknownRunArtifact
from flywheel_trainer.runs.limits import check_artifact_name
from flywheel_trainer.runs.ports import RunEdits, RunStore
from flywheel_trainer.runs.run import Run, RunName

MAX_BYTES = 5 * 1024**3
PREFIX = "run-artifacts/"
UPLOADS = "run-uploads/"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def stored_key(sha256: str) -> str:
    """The key of an uploaded file."""
    return PREFIX + content_key(sha256)


class RunArtifacts:
    """Stores files that processes of users upload to runs, and reads them."""

    def __init__(
        self, runs: RunStore, edits: RunEdits, objects: ObjectStore, bucket: str, ids: Ids, clock: Clock
    ) -> None:
        self._runs, self._edits, self._objects, self._bucket = runs, edits, objects, bucket
        self._ids, self._clock = ids, clock

    async def upload(
        self, name: RunName, artifact: str, sha256: str, size: int, data: AsyncIterator[bytes]
    ) -> Artifact:
        """Store the bytes and add them to the run. Raises InvalidArtifact, UnknownRun, RunDeleted.

        The bytes go through an upload key, so that the key of a digest never has other bytes.
        """
        check_artifact_name(artifact)
        if _SHA256.fullmatch(sha256) is None:
            raise InvalidArtifact("sha256 must be 64 lower-case hexadecimal digits.", field="sha256")
        if size > MAX_BYTES:
            raise InvalidArtifact(f"The artifact has {size} bytes: at most {MAX_BYTES} are allowed.")
        await self._get(name)
        key = stored_key(sha256)
        # Also bytes that are stored already are read: only a caller who has them may add them.
        upload = f"{UPLOADS}{self._ids.new()}"
        found = _Checked(data, size)
        try:
            await self._objects.put_stream(upload, found.chunks())
            if found.sha256 != sha256 or found.size != size:
                raise InvalidArtifact(
                    f"The artifact has {found.size} bytes with the digest {found.sha256}; "
                    f"announced were {size} bytes with {sha256}."
                )
            await self._objects.copy(upload, key)
        finally:
            await self._objects.delete(upload)
        stored = Artifact(artifact, size, sha256, f"s3://{self._bucket}/{key}")
        await self._edits.add_artifact(name, stored, self._clock.now())
        return stored

    async def download(self, name: RunName, artifact: str) -> AsyncIterator[bytes]:
        """The bytes of an uploaded artifact. Raises UnknownRun, UnknownRunArtifact."""
        run = await self._get(name)
        for one in run.artifacts:
            key = stored_key(one.sha256)
            # The uri of an artifact that UpdateRun added is the caller's: it is not read here.
            if one.name == artifact and one.uri == f"s3://{self._bucket}/{key}":
                break
        else:
            raise UnknownRunArtifact.of(name, artifact)
        try:
            async for chunk in self._objects.stream(key):
                yield chunk
        except ObjectNotFound as error:
            raise UnknownRunArtifact.of(name, artifact) from error

    async def _get(self, name: RunName) -> Run:
        run = await self._runs.get_run(name)
        if run is None:
            raise UnknownRun.of(name)
        return run


class _Checked:
    """Digest and size of bytes that pass through."""

    def __init__(self, data: AsyncIterator[bytes], limit: int) -> None:
        self._data, self._limit, self._digest = data, limit, hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._data:
            self.size += len(chunk)
            if self.size > self._limit:
                raise InvalidArtifact(
                    f"The artifact has more than the {self._limit} bytes that were announced."
                )
            self._digest.update(chunk)
            yield chunk
