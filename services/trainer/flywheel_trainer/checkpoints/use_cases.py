"""Use cases of the records of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flywheel_common.clock import Clock
from flywheel_common.paging import Page
from flywheel_trainer.checkpoints.checkpoint import Checkpoint, check_checkpoints
from flywheel_trainer.checkpoints.errors import InvalidCheckpoint
from flywheel_trainer.checkpoints.ports import CheckpointStore
from flywheel_trainer.jobs.files import checkpoint_prefix
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.jobs.use_cases import Jobs
from flywheel_trainer.runs.errors import ForeignRun


class JobCheckpoints:
    """Records and lists the checkpoints of jobs."""

    def __init__(self, store: CheckpointStore, jobs: Jobs, bucket: str, clock: Clock) -> None:
        self._store, self._jobs, self._bucket, self._clock = store, jobs, bucket, clock

    async def record(
        self, name: JobName, folder_uri: str, checkpoints: Sequence[tuple[str, Checkpoint]], attempt: str
    ) -> None:
        """Make these the records of a folder; each comes with its uri. Idempotent.

        Raises UnknownJob, InvalidCheckpoint, AttemptEnded, and ForeignRun for other callers.
        """
        await self._jobs.get(name)
        if not attempt:
            raise ForeignRun("Only the attempt of a job may record its checkpoints.")
        folder = self._folder(name, folder_uri)
        found = [_placed(folder_uri, folder, uri, one) for uri, one in checkpoints]
        check_checkpoints(folder, found)
        await self._store.replace(name, folder, found, attempt, self._clock.now())

    async def list(self, name: JobName, size: int, token: str) -> Page[Checkpoint]:
        """Raises UnknownJob."""
        await self._jobs.get(name)
        return await self._store.list(name, size, token)

    def uri(self, name: JobName, checkpoint: Checkpoint) -> str:
        """The address of the files of a checkpoint."""
        parts = [self._base(name), checkpoint.folder, checkpoint.name]
        return "/".join(part for part in parts if part)

    def _base(self, name: JobName) -> str:
        return f"s3://{self._bucket}/{checkpoint_prefix(name)}"

    def _folder(self, name: JobName, uri: str) -> str:
        """The folder below that of the job's checkpoints."""
        base = self._base(name)
        if uri != base and not uri.startswith(f"{base}/"):
            raise InvalidCheckpoint(f"{uri[:300]!r} is not below {base}.", field="folder_uri")
        return uri.removeprefix(base).removeprefix("/")


def _placed(folder_uri: str, folder: str, uri: str, checkpoint: Checkpoint) -> Checkpoint:
    parent, _, name = uri.rpartition("/")
    if parent != folder_uri:
        raise InvalidCheckpoint(f"{uri[:300]!r} is not in {folder_uri[:300]!r}.", field="checkpoints")
    return replace(checkpoint, folder=folder, name=name)
