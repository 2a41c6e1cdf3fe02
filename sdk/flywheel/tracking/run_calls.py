"""Calls about runs: search, best-of, curves, notes, deletion, artifacts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from flywheel.connection import Connection, request_id
from flywheel.paging import list_items
from flywheel.tracking.curves import Curve
from flywheel.tracking.errors import TrackingError
from flywheel_protos.trainer.v1 import purge_pb2, tracking_pb2, trainer_pb2

Statistic = Literal["last", "min", "max"]
POINTS_PER_PAGE = 50_000
CHUNK_BYTES = 512 * 1024
UPLOAD_SECONDS = 3600.0
PURGE_PAGE = 50


@dataclass(frozen=True)
class Purged:
    """Names of the runs that a purge removes, and the size of their files."""

    runs: tuple[str, ...]
    artifact_bytes: int


class RunCalls(Connection):
    """Calls of the trainer about runs; a run is given by its id or name."""

    async def get_run(self, run: str) -> trainer_pb2.Run:
        """A run. Raises NotFound."""
        request = trainer_pb2.GetRunRequest(name=self.path("runs", run))
        return (await self.trainer.GetRun(request)).run

    async def search_runs(
        self, where: str = "", order_by: str = "", limit: int | None = None, *, show_deleted: bool = False
    ) -> list[trainer_pb2.Run]:
        """Runs that fulfil conditions such as `params.lr<0.1 AND (max.auc>0.7 OR tags.team=a)`, newest first
        or in an order such as `-max.auc`; at most `limit`, by default all."""
        request = trainer_pb2.ListRunsRequest(
            parent=self.parent, filter=where, order_by=order_by, show_deleted=show_deleted
        )
        return (await list_items(self.trainer.ListRuns, request, "runs", limit)).items

    async def best_run(
        self, experiment: str, metric: str, *, mode: Literal["max", "min"] = "max", of: Statistic = "last"
    ) -> trainer_pb2.Run:
        """The run with the largest (or smallest) last, smallest or largest value of a metric. Raises
        TrackingError when no run has the metric."""
        field = "metrics" if of == "last" else of
        key = "`" + metric.replace("`", "``") + "`"
        runs = await self.search_runs(
            f'experiment="{experiment}" AND {field}.{key}>=-inf',
            f"{'-' if mode == 'max' else ''}{field}.{key}",
            1,
        )
        if not runs:
            raise TrackingError(f"No run of {experiment!r} has a value of {metric!r} that is a number.")
        return runs[0]

    async def run_curves(self, run: str, keys: Iterable[str] = ()) -> list[Curve]:
        """The points of a run by metric, in the order of their steps; by default of all metrics."""
        found: dict[str, Curve] = {}
        for key in tuple(keys) or ("",):
            request = trainer_pb2.ListMetricPointsRequest(
                run=self.path("runs", run), key=key, page_size=POINTS_PER_PAGE
            )
            while True:
                page = await self.trainer.ListMetricPoints(request)
                for name, step, value, time in zip(
                    page.keys, page.steps, page.values, page.times, strict=True
                ):
                    curve = found.setdefault(name, Curve(name, [], [], []))
                    curve.steps.append(step)
                    curve.values.append(value)
                    curve.times.append(time)
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
        return list(found.values())

    async def edit_run(
        self,
        run: str,
        *,
        name: str | None = None,
        notes: str | None = None,
        tags: Mapping[str, str] | None = None,
        remove_tags: Iterable[str] = (),
    ) -> trainer_pb2.Run:
        """Changes the shown name, the notes and the tags of a run in any state."""
        request = tracking_pb2.EditRunRequest(
            name=self.path("runs", run),
            display_name=name,
            notes=notes,
            tags=tags,
            removed_tags=remove_tags,
            request_id=request_id(),
        )
        return (await self.trainer.EditRun(request)).run

    async def delete_run(self, run: str) -> None:
        """Hides a run until `restore_run`."""
        await self.trainer.DeleteRun(tracking_pb2.DeleteRunRequest(name=self.path("runs", run)))

    async def restore_run(self, run: str) -> trainer_pb2.Run:
        """Undoes `delete_run`."""
        request = tracking_pb2.RestoreRunRequest(name=self.path("runs", run))
        return (await self.trainer.RestoreRun(request)).run

    async def purge_runs(self, deleted_for: timedelta, *, dry_run: bool = False) -> Purged:
        """Removes the runs of the project that were deleted at least this long ago, for good, with their
        points and the files that no other run has; runs of jobs stay.

        `dry_run` removes nothing, and shows at most 1,000 runs. Needs the role operator.
        """
        runs: list[str] = []
        size = 0
        request = purge_pb2.PurgeRunsRequest(
            parent=self.parent, page_size=PURGE_PAGE if not dry_run else 1000, dry_run=dry_run
        )
        request.deleted_for.FromTimedelta(deleted_for)
        while True:
            answer = await self.trainer.PurgeRuns(request)
            runs += answer.runs
            size += answer.artifact_bytes
            if dry_run or len(answer.runs) < request.page_size:
                return Purged(tuple(runs), size)

    async def upload_run_artifact(self, run: str, artifact: str, path: str | Path) -> trainer_pb2.RunArtifact:
        """Adds a file to a run in any state, in place of an artifact of the same name."""
        file = Path(path)
        size, sha256 = await asyncio.to_thread(_digest, file)
        target = tracking_pb2.UploadRunArtifactRequest.Target(
            run=self.path("runs", run), artifact=artifact, sha256=sha256, size_bytes=size
        )

        async def parts() -> AsyncIterator[tracking_pb2.UploadRunArtifactRequest]:
            yield tracking_pb2.UploadRunArtifactRequest(target=target)
            with await asyncio.to_thread(file.open, "rb") as content:
                while chunk := await asyncio.to_thread(content.read, CHUNK_BYTES):
                    yield tracking_pb2.UploadRunArtifactRequest(data=chunk)

        return (await self.trainer.UploadRunArtifact(parts(), timeout=UPLOAD_SECONDS)).artifact

    async def download_run_artifact(self, run: str, artifact: str, path: str | Path) -> Path:
        """Writes an artifact to a file, which appears when it is complete."""
        target = Path(path)
        partial = target.with_name(f".{target.name}.part")
        request = tracking_pb2.DownloadRunArtifactRequest(run=self.path("runs", run), artifact=artifact)
        with partial.open("wb") as file:
            async for part in self.answers(self.trainer.DownloadRunArtifact(request)):
                file.write(part.data)
        return partial.replace(target)


def _digest(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
