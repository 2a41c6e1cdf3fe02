"""REBUILD jobs: an online store that lost its contents is filled again from what the service keeps on S3."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping

from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import BatchView, Source
from flywheel_feature.ingest.archive_replay import ArchiveReplay
from flywheel_feature.ingest.generations import Generations
from flywheel_feature.ingest.materialize_job import MaterializeJob, MaterializeRequest
from flywheel_feature.ingest.materialize_view import MaterializeCheckpoint
from flywheel_feature.ingest.stream_materialization import TileFiller
from flywheel_feature.jobs.runner import JobContext
from flywheel_feature.tables.ports import SeenFiles

KIND = "REBUILD"


class RebuildJob:
    """The tiles of every project are filled, because they belong to one generation of one Redis; rows of the
    job's project."""

    def __init__(
        self,
        catalogs: Callable[[str], Awaitable[Catalog]],
        projects: Callable[[], Iterable[Catalog]],
        generations: Generations,
        replay: ArchiveReplay,
        filling: TileFiller,
        materializing: MaterializeJob,
        seen: SeenFiles,
    ) -> None:
        self._catalogs = catalogs
        self._projects = projects
        self._generations = generations
        self._replay = replay
        self._filling = filling
        self._materializing = materializing
        self._seen = seen

    async def run(self, job: JobContext) -> Mapping[str, object]:
        """The job's handler. A second start goes on in the generation that the first one began."""
        project: str = json.loads(job.request)["project"]
        catalog = await self._catalogs(project)
        state = json.loads(job.checkpoint) if job.checkpoint else {}
        if not state:
            await self._generations.begin(await self._generations.known())
            for view in catalog.live_views():
                if isinstance(view.kind, BatchView):
                    await self._seen.forget_files(project, view.id, view.version)
            state = {"batch": json.loads(MaterializeCheckpoint().dump())}
            await job.save_checkpoint(json.dumps(state).encode())
        events = await self._fill_tiles(job)
        standing = MaterializeCheckpoint.load(json.dumps(state["batch"]).encode())
        await self._materializing.views(MaterializeRequest(project, ""), standing, _Nested(job))
        return {"events": events, "rows": standing.read, "written": standing.written}

    async def _fill_tiles(self, job: JobContext) -> int:
        due = [
            (catalog, source, partition, end)
            for catalog, source in self._streams()
            for partition, end in (await self._replay.partitions(source)).items()
        ]
        total = sum(end for *_, end in due)
        done = 0
        for catalog, source, partition, end in due:
            job.check_cancelled()
            job.progress(done, total, "records", f"filling the views of {source.id}, partition {partition}")
            await self._filling.fill(catalog, source, partition, end)
            done += end
        job.progress(done, total, "records", "stream views are filled")
        return done

    def _streams(self) -> list[tuple[Catalog, Source]]:
        return [(c, s) for c in self._projects() for s in c.sources.values() if s.is_stream]


class _Nested:
    """The job as the materialization inside it sees it."""

    def __init__(self, job: JobContext) -> None:
        self._job = job
        self.progress = job.progress
        self.check_cancelled = job.check_cancelled

    async def save_checkpoint(self, checkpoint: bytes) -> None:
        await self._job.save_checkpoint(json.dumps({"batch": json.loads(checkpoint)}).encode())
