"""REBUILD jobs: fill the online store again from the archive and the tables on S3.

The tiles of every project are filled, because all tiles of a Redis belong to one generation. Rows of batch
views are written for the project of the job only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from flywheel_feature.definitions.catalog import Catalog, CatalogReader
from flywheel_feature.definitions.model import BatchView, Source
from flywheel_feature.ingest.archive_replay import ArchiveReplay
from flywheel_feature.ingest.generations import Generations
from flywheel_feature.ingest.materialize_checkpoint import MaterializeCheckpoint
from flywheel_feature.ingest.materialize_job import MaterializeJob, MaterializeRequest
from flywheel_feature.ingest.stream_materialization import TileFiller
from flywheel_feature.jobs.runner import JobContext
from flywheel_feature.tables.ports import SeenFiles

KIND = "REBUILD"


class RebuildJob:
    """Begins a new generation, fills its tiles, and materializes the batch views of the project."""

    def __init__(
        self,
        catalogs: CatalogReader,
        projects: Callable[[], Iterable[Catalog]],
        generations: Generations,
        replay: ArchiveReplay,
        filler: TileFiller,
        materialize_job: MaterializeJob,
        seen: SeenFiles,
    ) -> None:
        self._catalogs = catalogs
        self._projects = projects
        self._generations = generations
        self._replay = replay
        self._filler = filler
        self._materialize_job = materialize_job
        self._seen = seen

    async def run(self, job: JobContext) -> Mapping[str, object]:
        """The handler of the job; a restart continues in the generation that the first start began."""
        project: str = json.loads(job.request)["project"]
        catalog = await self._catalogs(project)
        nested = _NestedJob(job)
        if not job.checkpoint:
            await self._generations.begin(await self._generations.known())
            for view in catalog.live_views():
                if isinstance(view.kind, BatchView):
                    await self._seen.forget_files(project, view.id, view.version)
            await nested.save_checkpoint(MaterializeCheckpoint().dump())
        events = await self._fill_tiles(job)
        checkpoint = MaterializeCheckpoint.load(nested.checkpoint)
        await self._materialize_job.materialize(MaterializeRequest(project, ""), checkpoint, nested)
        return {"events": events, "rows": checkpoint.read, "written": checkpoint.written}

    async def _fill_tiles(self, job: JobContext) -> int:
        """Fill the tiles of every stream source; returns the number of records."""
        partitions = [
            (catalog, source, partition, end)
            for catalog, source in self._streams()
            for partition, end in (await self._replay.partitions(source)).items()
        ]
        total = sum(end for *_, end in partitions)
        done = 0
        for catalog, source, partition, end in partitions:
            job.check_cancelled()
            job.progress(done, total, "records", f"filling the views of {source.id}, partition {partition}")
            await self._filler.fill(catalog, source, partition, end)
            done += end
        job.progress(done, total, "records", "stream views are filled")
        return done

    def _streams(self) -> list[tuple[Catalog, Source]]:
        return [(c, s) for c in self._projects() for s in c.sources.values() if s.is_stream]


class _NestedJob:
    """The job as its materialization sees it: the checkpoint is a part of the job's checkpoint."""

    def __init__(self, job: JobContext) -> None:
        self._job = job
        self.progress = job.progress
        self.check_cancelled = job.check_cancelled
        self.checkpoint = json.dumps(json.loads(job.checkpoint)["batch"]).encode() if job.checkpoint else b""

    async def save_checkpoint(self, checkpoint: bytes) -> None:
        await self._job.save_checkpoint(json.dumps({"batch": json.loads(checkpoint)}).encode())
        self.checkpoint = checkpoint
